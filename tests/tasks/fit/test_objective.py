"""The objective as it is asked for: each against an independent minimiser, and all of it by the command."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from law_cases import QUICK, E, isoflop_design, problem_of_law, table_of, true_loss
from scipy.optimize import minimize

from reducible.pipelines.cli import main
from reducible.tasks.fit.files import fit_table
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.result import Fit
from reducible.tasks.fit.run_table import read_runs
from reducible.tasks.fit.search import search

N, D = isoflop_design()
RNG = np.random.default_rng(8)
LOSS = true_loss(N, D) * np.exp(0.004 * RNG.normal(size=35)) * np.where(RNG.random(35) < 0.2, 1.04, 1)


def penalty(options: FitOptions, r: np.ndarray) -> np.ndarray:
    """What the options ask for, written plainly."""
    size = np.abs(r)
    cost = {
        "l1": size,
        "least-squares": r * r,
        "huber": np.where(size < options.delta, r * r / 2, options.delta * (size - options.delta / 2)),
    }[options.objective]
    return np.where(r < 0, options.above, 1) * cost


@pytest.mark.parametrize("above", [1.0, 0.2])
@pytest.mark.parametrize("residuals", ["log", "raw"])
@pytest.mark.parametrize("objective", ["huber", "l1", "least-squares"])
def test_no_other_parameters_are_better(objective: str, residuals: str, above: float) -> None:
    """Nelder and Mead's simplex, which needs no derivatives, started at the optimum and about it."""
    options = FitOptions(objective=objective, residuals=residuals, above=above, delta=2e-3)  # type: ignore[arg-type]
    weight = RNG.uniform(0.5, 2, size=35)
    problem = options.posed(problem_of_law(N, D, LOSS), weight)
    found = search(problem)
    mean = np.exp(np.log(LOSS).mean())

    def stated(theta: np.ndarray) -> float:
        E, A, B, alpha, beta = problem.raw(theta)
        model = np.maximum(E + A * N**-alpha + B * D**-beta, 1e-9)
        r = np.log(model / LOSS) if residuals == "log" else (model - LOSS) / mean
        return float((weight * penalty(options, r)).sum())

    simplex = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000, "maxfev": 8000}
    rivals = [minimize(stated, found.theta * k, method="Nelder-Mead", options=simplex).fun for k in (1, 1.03, 0.97)]
    assert stated(found.theta) <= min(rivals) * (1 + 1e-5)
    assert found.share_at_best > 0.5


def test_derivatives_hold_for_weights_and_sides() -> None:
    weight = RNG.uniform(0.5, 2, size=35)
    problem = FitOptions(above=0.3, delta=0.01).posed(problem_of_law(N, D, LOSS), weight)
    theta, ones = np.array([[0.5, 0.3, 0.2, 0.4, 0.3]]), np.ones((1, 35))
    _, gradient, _, hessian, _ = problem.expansion(theta, ones)
    for i, step in enumerate(1e-6 * np.eye(5)):
        slope = (problem.objective(theta + step, ones) - problem.objective(theta - step, ones)) / 2e-6
        np.testing.assert_allclose(gradient[0, i], slope[0], rtol=1e-5, atol=1e-8)
        bend = (problem.expansion(theta + step, ones)[1] - problem.expansion(theta - step, ones)[1]) / 2e-6
        np.testing.assert_allclose(hessian[0, i], bend[0], rtol=1e-4, atol=1e-5)


def test_defaults_are_the_objective_of_before() -> None:
    table = table_of(N, D, 0.003)
    assert FitOptions().model_dump(exclude_defaults=True) == {}
    plain, spelled = fit_runs(table, QUICK), fit_runs(table.assign(weight=7.0), QUICK)
    assert plain.law == spelled.law  # weights that are all alike are none


def test_a_run_of_weight_two_is_the_run_twice() -> None:
    table = table_of(N, D, 0.003)
    weighted = fit_runs(table.assign(weight=np.where(np.arange(35) % 3, 1.0, 2.0)), QUICK)
    copies = pandas.concat([table.assign(seed=0), table[np.arange(35) % 3 == 0].assign(seed=1)], ignore_index=True)
    twice = fit_runs(copies, QUICK)
    assert weighted.law is not None and twice.law is not None
    np.testing.assert_allclose(weighted.law.theta, twice.law.theta, rtol=1e-4)


def test_badly_tuned_runs_are_allowed_for() -> None:
    """A third of the runs lies up to 10 % too high: with them at a tenth of the weight E is the truth's again."""
    table = table_of(N, D, 0.002, seed=2)
    bad = RNG.random(35) < 0.4
    table["loss"] *= np.where(bad, 1 + 0.1 * RNG.random(35), 1)
    errors = []
    for above in (1.0, 0.1):
        fit = fit_runs(table, FitOptions(bootstrap=100, above=above))
        assert fit.law is not None
        errors.append(np.abs(np.log(fit.law.loss(N=N, D=D) / true_loss(N, D))).mean())
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.004


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_none_leaves_the_run_out(weight: float) -> None:
    fit = fit_runs(table_of(N, D, 0.003).assign(weight=[weight] + [1.0] * 34), QUICK)
    assert [run.reason for run in fit.excluded] == [f"weight is {weight:g}: it must be a positive number"]


def test_the_command_takes_what_python_takes(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    table_of(N, D, 0.003).assign(trust=np.linspace(1, 2, 35)).to_csv(path, index=False)
    options = "--objective l1 --residuals raw --above 0.5 --isoflop akima --window 6 --noise-draws 150 --seed 3"
    made = CliRunner().invoke(
        main, ["fit", str(path), "--draws", "100", "--delta", "0.01", "--column", "weight=trust", *options.split()]
    )
    assert made.exit_code == 0, made.output
    assert "runs weigh as trust says, from 1 to 2" in made.output
    asked = FitOptions(
        objective="l1", residuals="raw", above=0.5, isoflop="akima", window=6, noise_draws=150, seed=3, bootstrap=100,
        delta=0.01,
    )  # fmt: skip
    by_command = Fit.load(tmp_path / "runs-fit/fit.json")
    assert by_command.options == asked.model_dump()
    from reducible.tasks.fit.run_table import TableOptions

    by_python = fit_table(read_runs(str(path), TableOptions(columns={"weight": "trust"})), tmp_path / "again", asked)
    assert by_command.law == by_python.law and by_command.isoflop == by_python.isoflop
    assert by_command.law is not None and by_command.law.E.low < E < by_command.law.E.high
    assert len(by_command.isoflop.draws) <= 150 if by_command.isoflop else False
