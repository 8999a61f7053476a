"""Reading the law: the optimum against brute force, budgets against losses, and targets that no compute reaches."""

import math

import numpy as np
import pytest
from law_cases import ALPHA, BETA, QUICK, A, B, E, isoflop_design, table_of
from scipy.optimize import minimize_scalar

from reducible.tasks.errors import UserError
from reducible.tasks.fit.allocation import allocation
from reducible.tasks.fit.cost import Cost, cost_of
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_summary import prediction_text, summary
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Fit

LAW = np.array([[E, A, B, ALPHA, BETA]])


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_runs(table_of(*isoflop_design(), noise=0.003, seed=1), QUICK)


@pytest.mark.parametrize("cost", [Cost(6, 0, 0.5, 0), Cost(6, 4000, 0.5, 0), Cost(5.8, -900, 1 / 3, 0)])
@pytest.mark.parametrize("compute", [1e12, 1e16, 1e22])
def test_optimum_is_the_minimum_along_the_budget(cost: Cost, compute: float) -> None:
    def loss(log_N: float) -> float:
        N = math.exp(log_N)
        return float(E + A * N**-ALPHA + B * cost.units(N, compute) ** -BETA)

    brute = minimize_scalar(loss, bounds=(math.log(2e3), math.log(1e14)), method="bounded", options={"xatol": 1e-9})
    N, D, lowest = (float(v[0]) for v in CHINCHILLA.optimal(LAW, cost, compute))
    assert lowest == pytest.approx(brute.fun, rel=1e-12)
    assert math.log(N) == pytest.approx(brute.x, abs=1e-4)
    assert cost.per_unit(N) * D == pytest.approx(compute, rel=1e-9)


def test_closed_form_exponents_for_6ND() -> None:
    share = allocation(CHINCHILLA, Cost(6, 0, 0.5, 0), LAW[0], LAW, 1e15, 1e20)
    assert share is not None
    assert share.a.value == pytest.approx(BETA / (ALPHA + BETA), rel=1e-9)
    assert share.b.value == pytest.approx(ALPHA / (ALPHA + BETA), rel=1e-9)
    n = ((ALPHA * A) / (BETA * B)) ** (1 / (ALPHA + BETA)) * 6 ** (-BETA / (ALPHA + BETA))
    assert share.n == pytest.approx(n, rel=1e-6)


def test_loss_and_compute_read_both_ways() -> None:
    cost = Cost(6, 4000, 0.5, 0)
    N, D, loss = CHINCHILLA.optimal(LAW, cost, 1e17)
    back = CHINCHILLA.required(LAW, cost, loss)
    np.testing.assert_allclose([back[0][0], back[1][0], back[2][0]], [N[0], D[0], 1e17], rtol=1e-6)
    assert CHINCHILLA.required(LAW, cost, np.array([E]))[2][0] == math.inf


def test_cost_is_recovered_and_extrapolates() -> None:
    """Exact counts of a tied transformer of fixed depth: 6N and attention; 16 times larger it is off by a few %."""
    width = np.array([16, 24, 32, 48, 64, 96, 128, 256], dtype=float)
    N = 12 * 3 * width**2 + 256 * width
    per_unit = 6 * N + 12 * 3 * width * 128
    cost = cost_of(N[:-1], np.full(7, 1e6), 1e6 * per_unit[:-1])
    assert cost.worst < 0.02
    assert cost.per_unit(N[-1]) == pytest.approx(per_unit[-1], rel=0.05)
    plain = cost_of(N, N, 6 * N * N)
    assert plain.coefficient == pytest.approx(6) and plain.overhead == 0


def test_prediction_for_a_budget(fit: Fit) -> None:
    best = predict(fit, compute=1e23)
    N, D, loss = (float(v[0]) for v in CHINCHILLA.optimal(LAW, Cost(6, 0, 0.5, 0), 1e23))
    assert best.ratio == pytest.approx(100, rel=1e-6)
    for got, truth in ((best.N, N), (best.D, D), (best.loss, loss), (best.reducible, loss - E)):
        assert got.low < truth < got.high and got.low < got.value < got.high
    assert "100 times the largest run" in prediction_text(best)


def test_prediction_interval_of_loss_holds_run_noise(fit: Fit) -> None:
    """Near the data the law is known much better than one run is: the interval is about +-2 x 0.3 %."""
    best = predict(fit, compute=1e19)
    relative = (best.loss.high - best.loss.low) / best.loss.value
    assert 0.006 < relative < 0.03


def test_prediction_for_a_loss(fit: Fit) -> None:
    target = predict(fit, compute=1e22).loss.value
    back = predict(fit, loss=target)
    assert back.compute.value == pytest.approx(1e22, rel=1e-4)
    assert back.compute.low < 1e22 < back.compute.high
    assert back.loss.value == target


def test_a_target_at_or_below_E_is_refused(fit: Fit) -> None:
    assert fit.law is not None
    for target in (fit.law.E.value, fit.law.E.value - 0.1):
        with pytest.raises(UserError, match="at or below the irreducible loss E = .* no compute reaches it"):
            predict(fit, loss=target)


def test_a_target_just_above_E_may_be_out_of_reach(fit: Fit) -> None:
    assert fit.law is not None
    close = predict(fit, loss=fit.law.E.value + 0.003)
    assert close.compute.high == math.inf
    assert any("may be out of reach" in text for text in close.warnings)


@pytest.mark.parametrize("question", [{}, {"compute": 1e20, "loss": 2.0}, {"compute": -1.0}, {"loss": math.nan}])
def test_senseless_questions_are_refused(fit: Fit, question: dict[str, float]) -> None:
    with pytest.raises(UserError):
        predict(fit, **question)


def test_without_a_law_or_a_split_nothing_is_predicted() -> None:
    N = np.geomspace(1e7, 1e10, 12)
    with pytest.raises(UserError, match="cannot say how to split compute .* one line only"):
        predict(fit_runs(table_of(N, 20 * N), QUICK), compute=1e20)
    with pytest.raises(UserError, match="no law was fitted.* 4 runs at distinct"):
        predict(fit_runs(table_of(N[:4], 20 * N[:4]), QUICK), compute=1e20)


def test_summary_says_what_matters(fit: Fit) -> None:
    text = summary(fit)
    assert f"E     = {fit.law.E}" in text  # type: ignore[union-attr]
    assert "at 1e+22 FLOPs (10 times the largest run): N* = " in text
    assert "starts at the best optimum" in text and "back-test: mean error" in text
    few = summary(fit_runs(table_of(*isoflop_design(1, 4))))
    assert "E is not identified by these runs: 4 runs" in few
