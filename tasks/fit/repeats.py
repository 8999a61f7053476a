"""Runs that read their data more than once: most forms take every unit for a new one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

ONCE = 1.001  # D/U up to which the data count as read once: the last batch is rounded
UNIQUE = "unique_tokens"
"""The column of U, by which a form says that it knows repetition."""


def repeated(D: ArrayLike, unique: ArrayLike) -> np.ndarray:
    """Whether each run reads more units than there are unique ones; not if either is unknown."""
    with np.errstate(invalid="ignore"):
        return np.asarray(D, dtype=float) > ONCE * np.asarray(unique, dtype=float)


def repeats_note(D: ArrayLike, unique: ArrayLike) -> str | None:
    """A sentence if any run reads its data again."""
    D, unique = np.asarray(D, dtype=float), np.asarray(unique, dtype=float)
    again = repeated(D, unique)
    if not again.any():
        return None
    passes = float((D[again] / np.broadcast_to(unique, D.shape)[again]).max())
    which = "the training reads its" if len(D) == 1 else f"{again.sum()} of {len(D)} trainings read their"
    return (
        f"{which} data up to {passes:.3g} times, and a repeated unit is worth less than a new one: a law in N and D "
        "takes them for alike; the form data-constrained does not"
    )
