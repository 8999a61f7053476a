"""Reading the law: the optimum against brute force, budgets against losses, and targets that no compute reaches."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from law_cases import ALPHA, BETA, QUICK, A, B, E, isoflop_design, table_of
from scipy.optimize import minimize_scalar

from reducible.pipelines.cli import main
from reducible.tasks.errors import UserError
from reducible.tasks.fit.allocation import allocation
from reducible.tasks.fit.cost import Cost, cost_of
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_summary import prediction_text, summary
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.plans import read_plans
from reducible.tasks.fit.predict import gain, model_within, predict, predict_model
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
    assert "starts at the best optimum" in text and "times the compute: median error" in text
    few = summary(fit_runs(table_of(*isoflop_design(1, 4))))
    assert "E is not identified by these runs: 4 runs" in few


def test_loss_of_a_model_is_the_law_and_its_penalty_is_against_brute_force(fit: Fit) -> None:
    law = fit.law
    assert law is not None
    found = predict_model(fit, 7e9, 2e12)
    e, a, b, alpha, beta = law.theta
    assert found.loss.value == pytest.approx(e + a * 7e9**-alpha + b * 2e12**-beta, rel=1e-12)
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.compute == pytest.approx(float(fit.cost.per_unit(7e9)) * 2e12)

    def loss(log_N: float) -> float:
        return float(law.loss(N=math.exp(log_N), D=fit.cost.units(math.exp(log_N), found.compute)))

    best = minimize_scalar(loss, bounds=(15, 30), method="bounded", options={"xatol": 1e-9}).fun
    assert found.penalty is not None and found.waste is not None and found.best is not None
    assert found.penalty.value == pytest.approx(found.loss.value - best, rel=1e-6)
    assert 0 < found.penalty.low <= found.penalty.value <= found.penalty.high
    needed = predict(fit, loss=found.loss.value).compute.value
    assert found.waste.value == pytest.approx(found.compute / needed) and found.waste.value > 1


def test_the_best_model_pays_no_penalty(fit: Fit) -> None:
    best = predict(fit, compute=1e21)
    found = predict_model(fit, best.N.value, best.D.value)
    assert found.penalty is not None and found.penalty.value == pytest.approx(0, abs=1e-9)
    assert found.loss.value == pytest.approx(best.loss.value) and found.loss.low == pytest.approx(best.loss.low)


def test_a_model_off_the_line_of_the_runs_is_refused_and_one_on_it_has_no_penalty() -> None:
    N = np.geomspace(1e7, 1e9, 12)
    line = fit_runs(table_of(N, 20 * N, noise=0.003, seed=1), QUICK)
    with pytest.raises(UserError, match="these runs say nothing of N = 1e\\+09 with D = 1e\\+12"):
        predict_model(line, 1e9, 1e12)
    found = predict_model(line, 2e9, 40e9)
    assert found.penalty is None and found.best is None
    assert found.loss.value == pytest.approx(E + A * 2e9**-ALPHA + B * 40e9**-BETA, rel=0.01)


@pytest.mark.parametrize(("N", "D"), [(0, 1e9), (1e9, -1), (math.nan, 1e9), (1e9, math.inf)])
def test_a_model_has_positive_sizes(fit: Fit, N: float, D: float) -> None:
    with pytest.raises(UserError, match="must be a positive number"):
        predict_model(fit, N, D)


def test_the_gain_of_a_known_law_is_its_closed_form(fit: Fit) -> None:
    """On 6ND the reducible loss of the best models falls as C^-gamma, gamma = alpha beta / (alpha + beta)."""
    assert fit.law is not None
    found = gain(fit, 10)
    e, a, b, alpha, beta = fit.law.theta
    gamma = alpha * beta / (alpha + beta)
    assert found.share.value == pytest.approx(1 - 10**-gamma, rel=1e-6)
    assert found.before.compute.value == fit.largest_compute and found.after.ratio == pytest.approx(10)
    assert found.difference.value == pytest.approx(found.before.loss.value - found.after.loss.value)
    assert found.difference.low < found.difference.value < found.difference.high
    truth = 1 - 10 ** -(ALPHA * BETA / (ALPHA + BETA))
    assert found.share.low < truth < found.share.high
    assert gain(fit, 10, 1e19).before.compute.value == 1e19
    for factor in (1.0, 0.5, math.nan):
        with pytest.raises(UserError, match="the factor must be a number above 1"):
            gain(fit, factor)


@pytest.mark.parametrize("cost", [Cost(6, 0, 0.5, 0), Cost(6, 4000, 0.5, 0), Cost(5.8, -900, 1 / 3, 0)])
def test_a_budget_and_one_of_N_and_D_give_the_other(fit: Fit, cost: Cost) -> None:
    there = replace(fit, cost=cost)
    for N, D in ((1e7, 3e9), (7e9, 2e12)):
        compute = float(cost.per_unit(N) * D)
        assert model_within(there, compute, N=N) == pytest.approx((N, D))
        assert model_within(there, compute, D=D) == pytest.approx((N, D))
    with pytest.raises(UserError, match="no model can be trained on D = 1e\\+30 with 1000 FLOPs"):
        model_within(there, 1e3, D=1e30)


def test_the_command_answers_what_more_compute_gains_and_a_model_within_a_budget(fit: Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["predict", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    found = gain(fit, 10)
    assert f"gain      {found.difference} nats, " in told("--gain", "10")
    assert json.loads(told("--gain", "10", "--json")) == json.loads(json.dumps(found.to_dict()))
    assert "compute   1e+19 -> 1e+20 FLOPs, 10 times" in told("--gain", "10", "--compute", "1e19")
    N, D = model_within(fit, 1e22, N=7e9)
    assert f"loss      {predict_model(fit, N, D).loss}" in told("--N", "7e9", "--compute", "1e22")
    for arguments in (["--gain", "10", "--loss", "2"], ["--held", "--compute", "1e9"]):
        result = CliRunner().invoke(main, ["predict", str(tmp_path), *arguments])
        assert result.exit_code == 2 and "give one of --compute FLOPS" in result.output
    result = CliRunner().invoke(main, ["predict", str(tmp_path), "--N", "1", "--D", "1", "--compute", "1"])
    assert result.exit_code == 2 and "--N and --D belong together" in result.output


def test_plans_are_read_as_any_table(tmp_path: Path) -> None:
    path = tmp_path / "plans.csv"
    path.write_text("name;params;tokens (B)\nsmall;410M;8,2\n;7e9;2000\n")
    plans = read_plans(str(path))
    assert [(plan.name, plan.N) for plan in plans] == [("small", 410e6), ("row 3", 7e9)]
    assert [plan.D for plan in plans] == pytest.approx([8.2e9, 2e12])
    path.write_text("N,D\n1e6,\n")
    with pytest.raises(UserError, match="row 2, column D: is empty, not a positive number"):
        read_plans(str(path))
    path.write_text("N\n1e6\n")
    with pytest.raises(UserError, match="lacks the column D; it has N"):
        read_plans(str(path))
    path.write_text("params (M),tokens_B\n125M,2.5\n")
    with pytest.raises(UserError, match="row 2, column params .M.: 125M says its unit, and so does the name"):
        read_plans(str(path))


def test_the_command_answers_for_one_model_and_for_a_table(fit: Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    (tmp_path / "plans.csv").write_text("name,N,D\na,1e9,2e10\nb,7B,2T\n")

    def called(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["predict", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    one = json.loads(called("--N", "7e9", "--D", "2e12", "--json"))
    expected = predict_model(fit, 7e9, 2e12)
    assert one == json.loads(json.dumps(expected.to_dict()))
    assert f"loss      {expected.loss}" in called("--N", "7B", "--D", "2T")
    first, second = json.loads(called("--table", str(tmp_path / "plans.csv"), "--json"))
    assert first["name"] == "a" and second == {"name": "b", **one}
    assert str(expected.penalty) in called("--table", str(tmp_path / "plans.csv"))
    for arguments, line in (
        (["--N", "7e9"], "--N and --D belong together"),
        (["--N", "many", "--D", "1"], "--N many: must be a number of parameters above 0, such as 7e9"),
        (["--N", "1", "--D", "1", "--loss", "3"], "give one of --compute FLOPS and --loss NATS, or --N and --D"),
        (["--family", "lstm", "--N", "1", "--D", "1"], "holds no fit.json of several families, so no lstm"),
    ):
        result = CliRunner().invoke(main, ["predict", str(tmp_path), *arguments])
        assert result.exit_code == 2 and line in result.output
