"""Intervals as a person reads them: also those that are open or unknown."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from reducible.tasks.fit.result import Estimate
from reducible.tasks.words import number


def interval(estimate: Estimate | None, write: Callable[[float], str] = number) -> str:
    """The 95 % interval, in words if an end is open or unknown."""
    if estimate is None or (math.isnan(estimate.low) and math.isnan(estimate.high)):
        return "interval unknown"
    low, high = estimate.low, estimate.high
    if math.isinf(high) and (math.isinf(low) or math.isnan(low)):
        return "no bound on either side"
    if math.isinf(high) or math.isnan(high):
        return f"at least {write(low)}, open above"
    if math.isinf(low) or math.isnan(low):
        return f"at most {write(high)}, open below"
    return f"{write(low)} to {write(high)}"


def with_interval(estimate: Estimate | None, write: Callable[[float], str] = number) -> Markup:
    """value (low to high)."""
    if estimate is None:
        return Markup("unknown")
    return Markup('{} <span class="interval">({})</span>').format(write(estimate.value), interval(estimate, write))
