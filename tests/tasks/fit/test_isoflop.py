"""IsoFLOP minima are found where they are, and refused where there are none; the frontier goes through them."""

import math

import numpy as np
import pytest

from reducible.tasks.fit.isoflop import _power, budgets, exponents, frontier, minima
from reducible.tasks.fit.result import Run


def budget(C: float, N: np.ndarray, loss: np.ndarray, name: str = "") -> list[Run]:
    return [Run(f"{name}{C:g}-{n:g}", n, C / 6 / n, C, y, budget=C) for n, y in zip(N, loss, strict=True)]


def parabola(N: np.ndarray, best: float, lowest: float, curvature: float) -> np.ndarray:
    return lowest + curvature * np.log(N / best) ** 2


def test_the_vertex_of_a_parabola_is_its_minimum() -> None:
    N = np.geomspace(1e5, 1e7, 7)
    (point,) = minima(budget(1e15, N, parabola(N, 7e5, 3.0, 0.1))).points
    assert point.refused is None and point.N and point.D and point.loss
    assert point.N.value == pytest.approx(7e5, rel=1e-6)
    assert point.D.value == pytest.approx(1e15 / 6 / 7e5, rel=1e-6)
    assert point.loss.value == pytest.approx(3.0, rel=1e-9)
    np.testing.assert_allclose(point.parabola(N), parabola(N, 7e5, 3.0, 0.1), rtol=1e-9)
    assert point.window[0] >= 7e5 / 4 and point.window[1] <= 7e5 * 4


@pytest.mark.parametrize(
    ("best", "reason"), [(1e4, "lowest loss is at the smallest size"), (1e9, "lowest loss is at the largest size")]
)
def test_a_minimum_at_the_edge_is_refused(best: float, reason: str) -> None:
    N = np.geomspace(1e5, 1e7, 6)
    (point,) = minima(budget(1e15, N, parabola(N, best, 3.0, 0.1))).points
    assert point.refused is not None and reason in point.refused
    assert point.N is None


def test_a_maximum_is_refused() -> None:
    N = np.geomspace(1e5, 1e6, 5)
    # Lowest in the middle by an outlier, yet the whole bends downward.
    loss = np.array([3.02, 3.30, 3.0, 3.30, 3.01])
    (point,) = minima(budget(1e15, N, loss), window=100).points
    assert point.refused is not None and "maximum" in point.refused


def test_runs_outside_the_window_do_not_bend_the_parabola() -> None:
    N = np.geomspace(1e4, 1e8, 13)
    steep = parabola(N, 1e6, 3.0, 0.05) + 0.05 * np.maximum(0, np.log(N / 1e6)) ** 3
    narrow, wide = (minima(budget(1e15, N, steep), window=w).points[0] for w in (4.0, 1e6))
    assert narrow.N is not None
    assert abs(math.log(narrow.N.value / 1e6)) < 0.3
    wide_error = math.inf if wide.N is None else abs(math.log(wide.N.value / 1e6))
    assert wide_error > 2 * abs(math.log(narrow.N.value / 1e6))


def test_budgets_are_told_apart() -> None:
    N = np.geomspace(1e5, 1e6, 4)
    runs = budget(1e15, N, N * 0 + 3) + budget(3e15, N, N * 0 + 3)
    assert [len(group) for group in budgets(runs[::-1])] == [4, 4]
    unnamed = [Run(r.name, r.N, r.D, r.C * (1 + 0.01 * i), r.loss) for i, r in enumerate(runs)]
    assert [len(group) for group in budgets(unnamed)] == [4, 4]
    assert minima(runs[:2]).points == ()  # two sizes have no curvature


def test_exponent_and_frontier_are_recovered() -> None:
    E, K, gamma, a = 1.7, 30.0, 0.15, 0.46
    runs = []
    for C in np.geomspace(1e14, 1e18, 6):
        best = 0.3 * C**a
        N = best * np.geomspace(1 / 5, 4, 7)
        runs += budget(C, N, parabola(N, best, E + K * C**-gamma, 0.06))
    found = minima(runs, noise=0.001, draws=300)
    share = exponents(found)
    assert share is not None
    assert share.a.value == pytest.approx(a, abs=1e-6) and share.n == pytest.approx(0.3, rel=1e-4)
    assert share.b.value == pytest.approx(1 - a, abs=1e-6)
    assert share.a.low < a < share.a.high
    line = frontier(found)
    assert line.E and line.K and line.gamma
    assert line.E.value == pytest.approx(E, rel=1e-2)
    assert line.gamma.value == pytest.approx(gamma, rel=2e-2)
    assert line.E.low < E < line.E.high
    np.testing.assert_allclose(line.loss(1e16), E + K * 1e16**-gamma, rtol=1e-4)


def test_frontier_search_is_as_good_as_curve_fit() -> None:
    from scipy.optimize import curve_fit

    C = np.geomspace(1e12, 1e16, 7)
    loss = (2.0 + 80 * C**-0.18) * np.exp(0.002 * np.random.default_rng(0).normal(size=7))
    scale = C / 1e14

    def model(x: np.ndarray, E: float, K: float, gamma: float) -> np.ndarray:
        return E + K * x**-gamma

    theirs = curve_fit(model, scale, loss, p0=(1.5, 1, 0.2), sigma=loss, maxfev=20000)[0]
    E, K, gamma = _power(C, loss[None])[0]

    def squares(y: np.ndarray) -> float:
        return float(((y / loss - 1) ** 2).sum())

    assert squares(E + K * C**-gamma) <= squares(model(scale, *theirs)) * (1 + 1e-4)


def test_three_minima_carry_no_frontier() -> None:
    N = np.geomspace(1e5, 1e7, 5)
    runs = [run for C in (1e14, 1e15, 1e16) for run in budget(C, N, parabola(N, 1e6, 3, 0.1))]
    line = frontier(minima(runs))
    assert line.E is None and "3 minima cannot carry" in line.verdict and len(line.points) == 3


def test_noise_that_hides_the_curvature_is_said() -> None:
    N = np.geomspace(1e5, 1e6, 5)
    (point,) = minima(budget(1e15, N, parabola(N, 3e5, 3.0, 0.001)), noise=0.02).points
    assert point.refused is not None and "hides the curvature" in point.refused


def test_interval_covers_the_minimum_under_known_noise() -> None:
    N = np.geomspace(1e5, 1e7, 7)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        loss = parabola(N, 9e5, 3.0, 0.05) * np.exp(0.002 * rng.normal(size=7))
        (point,) = minima(budget(1e15, N, loss), noise=0.002, draws=200, window=20).points
        assert point.N is not None
        hits += point.N.low <= 9e5 <= point.N.high
    assert 0.9 <= hits / 200 <= 0.99


def test_best_D_is_the_minimum_over_D_and_not_read_off_best_N() -> None:
    """Small models whose attention costs as much as their weights, so that D is no power of N."""
    N, C = np.geomspace(1e5, 1e7, 7), 1e15
    D = C / (6 * N + 2e4 * N**0.5)
    best = math.sqrt(D[2] * D[3])
    runs = [Run(f"{n:g}", n, d, C, y, budget=C) for n, d, y in zip(N, D, parabola(D, best, 3.0, 0.05), strict=True)]
    (point,) = minima(runs, noise=0.001, draws=200).points
    assert point.D and point.N
    assert point.D.value == pytest.approx(best, rel=1e-6)
    assert point.D.low < best < point.D.high
    off = np.interp(math.log(point.N.value), np.log(N), np.log(D))
    assert abs(off - math.log(best)) > 0.01  # what the other axis would have said


def test_seeds_of_a_size_are_one_point_of_an_interpolated_curve() -> None:
    N = np.geomspace(1e5, 1e7, 9)
    loss = parabola(N, 8e5, 3.0, 0.05)
    once = minima(budget(1e15, N, loss), curve="akima", noise=0.001, draws=100).points[0]
    seeds = budget(1e15, N, 1.002 * loss, "a") + budget(1e15, N, loss / 1.002, "b")
    twice = minima(seeds, curve="akima", noise=0.001, draws=100).points[0]
    assert once.N and twice.N and once.loss and twice.loss
    assert twice.N.value == pytest.approx(once.N.value, rel=1e-6)
    assert twice.loss.value == pytest.approx(once.loss.value, rel=1e-6)
    assert once.N.value == pytest.approx(8e5, rel=0.01)
