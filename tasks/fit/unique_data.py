"""A fitted law of repeated data, read for a given number of unique units."""

from __future__ import annotations

import math
from dataclasses import replace

from reducible.tasks.errors import UserError
from reducible.tasks.fit.laws.data_constrained import DataConstrained, WithUnique
from reducible.tasks.fit.result import Fit


def with_unique_data(fit: Fit, unique: float) -> Fit:
    """The fit whose law has so many unique units; a training on more reads them again.

    Raises:
        UserError: it is no law of repeated data, or the number is not positive.
    """
    if not (math.isfinite(unique) and unique > 0):
        raise UserError(f"unique tokens must be a positive number, not {unique:g}")
    if fit.law is None:
        return fit
    if not isinstance(fit.law.form, DataConstrained):
        raise UserError(
            f"the law {fit.law.form.formula} takes repeated units for new ones, so the number of unique ones says "
            "nothing; fit with --form data-constrained"
        )
    return replace(fit, law=replace(fit.law, form=WithUnique(unique)))
