"""How far runs lie from what was fitted to them, in one number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from reducible.tasks.fit.objective import Floats

OUTLIER = 6.0  # robust deviations at which a run is named, and no longer speaks for the noise of others


def deviation(residuals: Floats, parameters: int) -> float:
    """Robust standard deviation of residuals (median absolute, normal-consistent).

    A fit that is close to least absolute values passes exactly through as many runs as it has parameters: those
    zeros say nothing about the noise and are left out (Street, Carroll and Ruppert 1988).
    """
    size = np.sort(np.abs(residuals))[min(parameters, len(residuals) - 1) :]
    return float(np.median(size) / ndtri(0.75))


def cell_noise(residuals: Floats, cell: NDArray[np.intp], parameters: int) -> tuple[float, float]:
    """The deviation of a run, so that the mean of a cell's n runs has that over sqrt(n); and its degrees of freedom.

    Counted in cells, for what the runs of a cell share does not average out. Root mean square, because tails count
    for least squares; a cell beyond OUTLIER robust deviations counts as one at that distance.
    """
    size = np.bincount(cell, residuals) / np.sqrt(np.bincount(cell))
    freedom = max(1, len(size) - parameters)
    robust = deviation(size, parameters)
    return math.sqrt(float((np.minimum(np.abs(size), OUTLIER * robust) ** 2).sum()) / freedom), float(freedom)
