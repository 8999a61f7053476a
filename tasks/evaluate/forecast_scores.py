"""Forecasts as distributions, and how they are scored: CRPS and the coverage of central intervals.

The continuous ranked probability score is the integral over x of (F(x) - 1{x >= y})^2 = E|X - y| - E|X - X'| / 2: in
the units of the values, 0 at best, and the absolute error of a forecast that names a single number (Gneiting and
Raftery 2007). Axes: S samples, N forecasts, H steps ahead, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.5, 0.8, 0.95)
"""The probabilities of the central intervals."""


class Forecast(Protocol):
    """A forecast's distribution of every single value (N, H, C)."""

    def crps(self, y_NHC: np.ndarray) -> np.ndarray:
        """(N, H, C)."""
        ...

    def quantile(self, share: float) -> np.ndarray:
        """(N, H, C) the quantiles of that probability."""
        ...


@dataclass(frozen=True)
class NormalForecast:
    """Every value is normal."""

    mean_NHC: np.ndarray
    deviation_NHC: np.ndarray

    def crps(self, y_NHC: np.ndarray) -> np.ndarray:
        """Closed form: Gneiting and Raftery 2007, equation 21 (with the sign of a loss)."""
        from scipy.special import ndtr

        z = (y_NHC - self.mean_NHC) / self.deviation_NHC
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        return self.deviation_NHC * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))

    def quantile(self, share: float) -> np.ndarray:
        from scipy.special import ndtri

        return self.mean_NHC + ndtri(share) * self.deviation_NHC


@dataclass(frozen=True)
class SampledForecast:
    """Every value is one of S draws."""

    draws_SNHC: np.ndarray

    def crps(self, y_NHC: np.ndarray) -> np.ndarray:
        """The fair estimate, unbiased for the distribution of the draws (Ferro 2014), by sorting."""
        S = len(self.draws_SNHC)
        ordered = np.sort(self.draws_SNHC, axis=0)
        weight_S = (2 * np.arange(1, S + 1) - S - 1) / (S * (S - 1))  # half the mean distance of two different draws
        return np.abs(ordered - y_NHC).mean(0) - np.tensordot(weight_S, ordered, axes=1)

    def quantile(self, share: float) -> np.ndarray:
        """By Weibull's positions: another draw of the same distribution is below the quantile with exactly that
        probability. NumPy's default would be too near the middle."""
        return np.quantile(self.draws_SNHC, share, axis=0, method="weibull")


def coverage(forecast: Forecast, y_NHC: np.ndarray, counted_NHC: NDArray[np.bool_]) -> dict[float, float]:
    """{level of a central interval: share of the values in it}."""
    shares = {}
    for level in LEVELS:
        low, high = forecast.quantile((1 - level) / 2), forecast.quantile((1 + level) / 2)
        shares[level] = float(((low <= y_NHC) & (y_NHC <= high))[counted_NHC].mean())
    return shares


def normal_log_density(y: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Nats."""
    return -0.5 * (((y - mean) / deviation) ** 2 + np.log(2 * np.pi)) - np.log(deviation)
