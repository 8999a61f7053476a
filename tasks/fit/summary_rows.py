"""A last row that sums up the rows above it, as spreadsheets have: it is no run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas

from reducible.tasks.errors import UserError

_CLOSE = 2e-3
_KINDS: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "median": np.median}


def refuse_summary(runs: pandas.DataFrame, where: str) -> None:
    """Raises UserError if the last row holds the sum, mean or median of all rows above, in every column of numbers.

    It says so only if at least two of the columns vary above; a mean of equal numbers says nothing.
    """
    numbers = runs[[name for name in ("N", "N_without_embeddings", "D", "loss") if name in runs]].to_numpy(dtype=float)
    if len(numbers) < 4:
        return
    *_, last = numbers
    above = numbers[:-1]
    known = np.isfinite(last) & np.isfinite(above).all(axis=0)
    for kind, function in _KINDS.items():
        same = np.isclose(function(above, axis=0), last, rtol=_CLOSE, atol=0)
        varies = np.ptp(above, axis=0) > 10 * _CLOSE * np.abs(above).max(axis=0)
        if known.any() and same[known].all() and (known & varies).sum() >= 2:
            raise UserError(f"{where}: row {len(runs) + 1} is the {kind} of the rows above, and no run; delete it")
