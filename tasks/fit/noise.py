"""How far runs lie from what was fitted to them, in one number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, ndtri

from reducible.tasks.fit.objective import Floats

OUTLIER = 6.0  # robust deviations at which a run is named, and no longer speaks for the noise of others


def deviation(residuals: Floats, parameters: int) -> float:
    """Robust standard deviation of residuals (median absolute, normal-consistent).

    A fit that is close to least absolute values passes exactly through as many runs as it has parameters: those
    zeros say nothing about the noise and are left out (Street, Carroll and Ruppert 1988).
    """
    size = np.sort(np.abs(residuals))[min(parameters, len(residuals) - 1) :]
    return float(np.median(size) / ndtri(0.75))


def far(residuals: Floats, sigma: float) -> NDArray[np.bool_]:
    """Which runs lie so far from the law, for residuals of deviation sigma, that they are named."""
    found: NDArray[np.bool_] = np.abs(residuals) > OUTLIER * max(sigma, 1e-3)
    return found


def huber_scale(delta: float, sigma: float, above: float = 1.0) -> float:
    """mean(psi^2) / mean(psi') of normal residuals of deviation sigma, psi being the derivative of Huber's loss.

    Twice a difference of objectives over this is a likelihood ratio (a test for M-estimators). above: the weight of
    residuals on one side; their squares weigh so much less too.
    """
    d = min(delta, 1e3 * sigma)  # least squares has no delta
    inside = float(erf(d / (sigma * math.sqrt(2))))
    density = math.exp(-0.5 * (d / sigma) ** 2) / math.sqrt(2 * math.pi)
    moment = sigma**2 * (inside - 2 * d / sigma * density) + d * d * (1 - inside)
    return moment / inside * (1 + above**2) / (1 + above)


def cell_noise(residuals: Floats, cell: NDArray[np.intp], parameters: int) -> tuple[float, float]:
    """The deviation of a run, so that the mean of a cell's n runs has that over sqrt(n); and its degrees of freedom.

    Counted in cells, for what the runs of a cell share does not average out. Root mean square, because tails count
    for least squares; a cell beyond OUTLIER robust deviations counts as one at that distance.
    """
    size = np.bincount(cell, residuals) / np.sqrt(np.bincount(cell))
    freedom = max(1, len(size) - parameters)
    robust = deviation(size, parameters)
    return math.sqrt(float((np.minimum(np.abs(size), OUTLIER * robust) ** 2).sum()) / freedom), float(freedom)
