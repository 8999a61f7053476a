"""The entropy of linear-Gaussian series, against the covariance of whole series, spectra and ARMA models."""

import math
from typing import Any

import numpy as np
import pytest

from reducible.data.errors import DataError
from reducible.data.linear_gaussian import LinearGaussianSeries

PLANE = LinearGaussianSeries(
    A=((0.9, 0.3), (-0.3, 0.8)), B=((1.0, 0.0), (0.2, 0.5)), C=((1.0, 0.0), (0.5, 1.0)), D=((0.3, 0.0), (0.1, 0.7))
)
SOURCES = [LinearGaussianSeries(), PLANE, LinearGaussianSeries(B=((0.0,),)), LinearGaussianSeries(A=((0.0,),))]


def joint_entropy(source: LinearGaussianSeries, steps: int) -> float:
    """log det(2 pi e K) / 2 with K the covariance of all values of a series at once."""
    A, B, C, D = (np.array(getattr(source, name)) for name in "ABCD")
    states, channels = len(A), len(C)
    P = np.linalg.solve(np.eye(states**2) - np.kron(A, A), (B @ B.T).ravel()).reshape(states, states)
    K = np.zeros((steps * channels, steps * channels))
    for i in range(steps):
        for j in range(i + 1):
            block = C @ np.linalg.matrix_power(A, i - j) @ P @ C.T + (D @ D.T if i == j else 0)
            rows, columns = (slice(at * channels, (at + 1) * channels) for at in (i, j))
            K[rows, columns], K[columns, rows] = block, block.T
    return float(np.linalg.slogdet(2 * np.pi * np.e * K)[1] / 2)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_the_rate_is_the_growth_of_the_joint_entropy(source: LinearGaussianSeries) -> None:
    growth = joint_entropy(source, 60) - joint_entropy(source, 59)
    assert source.entropy_rate == pytest.approx(growth, abs=1e-9)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_windows_start_without_a_past(source: LinearGaussianSeries) -> None:
    """A series of 17 steps in windows of 5 is three of 5 and one of 2."""
    expected = (3 * joint_entropy(source, 5) + joint_entropy(source, 2)) / 17
    assert source.known_entropy(5, 17).best_loss == pytest.approx(expected, abs=1e-9)
    assert source.known_entropy(100, 17).best_loss == pytest.approx(joint_entropy(source, 17) / 17, abs=1e-9)


def test_the_rate_is_kolmogorovs_formula() -> None:
    """log(2 pi e) / 2 + the mean of log S over frequencies / 2, of AR(1) plus noise (Kolmogorov 1941, Szego)."""
    frequencies = 2 * np.pi * np.arange(4096) / 4096
    spectrum = 1 / np.abs(1 - 0.9 * np.exp(-1j * frequencies)) ** 2 + 1
    assert LinearGaussianSeries().entropy_rate == pytest.approx(
        math.log(2 * math.pi * math.e) / 2 + np.log(spectrum).mean() / 2, abs=1e-12
    )


def test_the_true_model_scores_the_entropy_on_drawn_series() -> None:
    """Log density of drawn series under their joint normal distribution, within four standard errors."""
    from scipy.stats import multivariate_normal

    source = LinearGaussianSeries(series=400, length=30)
    lags = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    covariance = 0.9**lags / (1 - 0.9**2) + np.eye(30)
    losses = [-multivariate_normal.logpdf(one.values[:, 0], cov=covariance) / 30 for one in source.draw()]
    error = np.std(losses) / math.sqrt(len(losses))
    assert np.mean(losses) == pytest.approx(source.known_entropy(30).best_loss, abs=4 * error)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({"A": ((math.nan,),)}, "data.generated.A: every number must be finite"),
        ({"C": ((math.inf,),)}, "data.generated.C: every number must be finite"),
        ({"A": ((1.0,),)}, "must be below 1"),
        ({"B": ((1e200,),)}, "orders of magnitude apart"),
        ({"C": ((1.0,), (1.0,)), "D": ((1.0, 0.0), (1.0, 1e-9))}, "orders of magnitude apart"),
        (
            {"A": ((0.9, 1e8), (0.0, 0.9)), "B": ((1.0, 0.0), (0.0, 1.0)), "C": ((1.0, 0.0),)},
            "orders of magnitude apart",
        ),
    ],
)
def test_an_entropy_that_cannot_be_computed_is_refused(matrices: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LinearGaussianSeries(**matrices).known_entropy(64)
