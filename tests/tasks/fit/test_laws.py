"""Each form against oracles of its own: torch's derivatives, exact recovery, brute force, published coefficients."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from click.testing import CliRunner

from reducible.pipelines.cli import main
from reducible.tasks.errors import UserError
from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.data_constrained import WithUnique
from reducible.tasks.fit.laws.registry import FORMS
from reducible.tasks.fit.search import search

Tensor = torch.Tensor


def _chinchilla(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    return p[0] + p[1] * N ** -p[3] + p[2] * D ** -p[4]


def _tied(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    return p[0] + p[1] * N ** -p[3] + p[2] * D ** -p[3]


def _gadre(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    """Equation 4 of Gadre et al. as it is printed."""
    M = D / N
    return p[0] + (p[1] * M ** p[3] + p[2] * M ** -p[3]) * C ** -p[3]


def _compute(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    return p[0] + p[1] * C ** -p[2]


def _muennighoff(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    """Equations 5 and 11 of Muennighoff et al. as they are printed, with G."""
    E, A, B, alpha, beta, R_D, R_N = p
    G = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta))
    U_N = torch.minimum((U * G) ** (beta / alpha) * G, N)
    N_repeats = torch.clamp(N / U_N - 1, min=0)
    D_repeats = torch.clamp(D / U - 1, min=0)
    N_effective = U_N + U_N * R_N * (1 - torch.exp(-N_repeats / R_N))
    D_effective = U + U * R_D * (1 - torch.exp(-D_repeats / R_D))
    return E + A / N_effective**alpha + B / D_effective**beta


def _farseer(p: Tensor, N: Tensor, D: Tensor, C: Tensor, U: Tensor) -> Tensor:
    E, A, B, alpha, beta, rho, delta = p
    return E + A * N**-alpha + B * N**-rho * D ** -(beta * N**-delta)


LAWS: dict[str, tuple[Callable[..., Tensor], list[float]]] = {
    "chinchilla": (_chinchilla, [1.8172, 482.01, 2085.43, 0.3478, 0.3658]),  # Besiroglu et al. 2024
    "tied": (_tied, [1.87, 521.0, 1488.0, 0.353]),
    "overtraining": (_gadre, [1.83665, 212.24, 366.69, 0.1364]),  # Gadre et al. 2024, RedPajama
    "compute": (_compute, [1.5, 900.0, 0.18]),
    # Muennighoff et al. 2023, appendix A
    "data-constrained": (
        _muennighoff,
        [math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596, 15.387756, 5.309743],
    ),
    "farseer": (_farseer, [1.7, 300.0, 3000.0, 0.34, 0.5, 0.02, 0.02]),
}
SIZES, DURATIONS = np.geomspace(1e7, 3e9, 7), np.geomspace(2e8, 3e11, 7)
N, D = (axis.ravel() for axis in np.meshgrid(SIZES, DURATIONS, indexing="ij"))
EPOCHS = np.random.default_rng(0).choice([1.0, 1.0, 2.0, 4.0, 10.0, 40.0, 100.0], size=len(N))
COLUMNS = {"N": N, "D": D, "C": 6 * N * D, "unique_tokens": D / EPOCHS}


def written(name: str, theta: Tensor) -> Tensor:
    """The law as its paper writes it, in torch, at the runs of this file."""
    return LAWS[name][0](theta, *(torch.tensor(COLUMNS[key]) for key in ("N", "D", "C", "unique_tokens")))


def test_every_form_is_tested_here() -> None:
    assert set(LAWS) == set(FORMS)


@pytest.mark.parametrize("name", LAWS)
def test_the_formula_is_that_of_its_paper(name: str) -> None:
    form, truth = FORMS[name], LAWS[name][1]
    columns = {key: COLUMNS[key] for key in form.columns}
    expected = written(name, torch.tensor(truth, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(form.loss(np.array(truth), **columns), expected, rtol=1e-12)
    table = np.array([truth, truth])[:, None, :]  # a table of laws broadcasts against the runs
    np.testing.assert_allclose(form.loss(table, **columns), np.stack([expected, expected]), rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_derivatives_are_torch_s(name: str) -> None:
    """Of the objective by the solver's parameters: autograd goes through `raw`, which is linear in none of them."""
    form, truth = FORMS[name], np.array(LAWS[name][1])
    rng = np.random.default_rng(2)
    loss = form.loss(truth, **{key: COLUMNS[key] for key in form.columns}) * np.exp(0.02 * rng.normal(size=len(N)))
    problem = form.problem({key: COLUMNS[key] for key in form.columns}, loss, 0.01)
    theta = problem.scaled(truth[None]) * (1 + 0.02 * rng.normal(size=len(truth)))
    weights = rng.uniform(0.5, 2, size=(1, len(N)))
    value, gradient, _, hessian, _ = problem.expansion(theta, weights)

    def objective(raw: Tensor) -> Tensor:
        r = torch.log(written(name, raw)) - torch.log(torch.tensor(loss))
        small = r.abs() <= 0.01
        return (torch.tensor(weights[0]) * torch.where(small, 0.5 * r * r, 0.01 * (r.abs() - 0.005))).sum()

    raw = torch.tensor(problem.raw(theta)[0])
    assert float(objective(raw)) == pytest.approx(float(value[0]), rel=1e-10)
    by_raw = torch.autograd.functional.jacobian(objective, raw).numpy()
    steps = 1e-6 * np.maximum(np.abs(theta[0]), 1e-2)
    moved = [(problem.raw(theta + e) - problem.raw(theta - e))[0] for e in np.diag(steps)]
    chain = np.stack(moved, axis=1) / (2 * steps)  # d raw / d theta
    np.testing.assert_allclose(gradient[0], by_raw @ chain, rtol=2e-6, atol=1e-9)
    for i, e in enumerate(np.diag(steps)):
        bent = problem.expansion(theta + e, weights)[1] - problem.expansion(theta - e, weights)[1]
        np.testing.assert_allclose(hessian[0, i], bent[0] / (2 * steps[i]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", LAWS)
def test_the_truth_is_recovered_without_noise(name: str) -> None:
    form, truth = FORMS[name], LAWS[name][1]
    columns = {key: COLUMNS[key] for key in form.columns}
    optimum = search(form.problem(columns, form.loss(np.array(truth), **columns), 1e-3))
    np.testing.assert_allclose(optimum.raw, truth, rtol=1e-5)


@pytest.mark.parametrize("cost", [Cost(6, 0, 0.5, 0), Cost(6, 4000, 0.5, 0)])
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.splits])
def test_the_frontier_is_that_of_brute_force(name: str, cost: Cost) -> None:
    form, theta = FORMS[name], np.array([LAWS[name][1]])
    for C in (1e18, 1e22):
        sizes = np.geomspace(1e5, 1e13, 200_001)
        losses = form.loss(theta[0], N=sizes, D=cost.units(sizes, C), C=np.full(len(sizes), C))
        best_N, best_D, loss = (float(value[0]) for value in form.optimal(theta, cost, C))
        assert loss == pytest.approx(losses.min(), rel=1e-9)
        assert math.log(best_N / sizes[losses.argmin()]) == pytest.approx(0, abs=2e-4)
        assert cost.per_unit(best_N) * best_D == pytest.approx(C, rel=1e-9)
        assert float(form.required(theta, cost, np.array([loss]))[2][0]) == pytest.approx(C, rel=1e-5)


def repeated(noise: float = 0.002) -> pandas.DataFrame:
    form, truth = FORMS["data-constrained"], np.array(LAWS["data-constrained"][1])
    loss = form.loss(truth, **{key: COLUMNS[key] for key in form.columns})
    return pandas.DataFrame({**COLUMNS, "loss": loss * np.exp(noise * np.random.default_rng(4).normal(size=len(N)))})


def test_what_repeating_is_worth_is_found_among_noise() -> None:
    fit = fit_runs(repeated(), FitOptions(form="data-constrained", bootstrap=100))
    assert fit.law is not None and fit.health.identified
    for name, truth in zip(fit.form.parameters, LAWS["data-constrained"][1], strict=True):
        assert fit.law[name].low <= truth <= fit.law[name].high, name
    assert not any("flat valley" in text for text in fit.health.warnings)


def test_runs_that_repeat_little_leave_R_in_a_flat_valley_which_is_said() -> None:
    table = repeated()
    table["unique_tokens"] = table["D"] / np.where(EPOCHS > 2, 2.5, EPOCHS)
    form, truth = FORMS["data-constrained"], np.array(LAWS["data-constrained"][1])
    noise = np.exp(0.01 * np.random.default_rng(6).normal(size=len(N)))
    table["loss"] = form.loss(truth, **{key: table[key].to_numpy() for key in form.columns}) * noise
    fit = fit_runs(table, FitOptions(form="data-constrained", bootstrap=100))
    said = [text for text in fit.health.warnings if "R_D lies in a flat valley" in text]
    assert len(said) == 1 and "repeat their data up to 1.5 times" in said[0]


def test_runs_without_repetition_have_no_law_of_repetition() -> None:
    table = repeated()
    table["unique_tokens"] = table["D"]
    fit = fit_runs(table, FitOptions(form="data-constrained"))
    assert fit.law is None and "0 numbers of repetitions cannot show what repeating is worth" in fit.health.verdict


def test_unique_tokens_that_are_not_known_leave_a_run_out_by_name() -> None:
    table = repeated()
    table.loc[3, "unique_tokens"] = np.nan
    fit = fit_runs(table, FitOptions(form="data-constrained", bootstrap=100))
    assert [(run.name, run.reason) for run in fit.excluded] == [
        ("run 4", "unique_tokens is nan: it must be a positive number")
    ]
    with pytest.raises(UserError, match="lacks the column unique_tokens"):
        fit_runs(table.drop(columns="unique_tokens"), FitOptions(form="data-constrained"))


def test_chinchilla_s_law_is_the_interaction_s_without_one() -> None:
    E, A, B, alpha, beta = LAWS["chinchilla"][1]
    plain = CHINCHILLA.loss(np.array([E, A, B, alpha, beta]), N=N, D=D)
    nested = FORMS["farseer"].loss(np.array([E, A, B, alpha, beta, 0, 0]), N=N, D=D)
    np.testing.assert_allclose(nested, plain, rtol=1e-12)


def test_gadre_s_coefficients_by_the_form(datasets: Path) -> None:
    """RedPajama: E, a, b, eta as published, by plain least squares on their five small runs."""
    points = pandas.read_csv(datasets / "scaling/gadre2024_overtraining/points.csv")
    runs = points[points.dataset == "rpj"]
    M20 = (runs.params_N < 1e9) & (runs.tokens_per_param == 20)
    M320 = (runs.params_N < 2e7) & (runs.tokens_per_param == 320)
    small = runs[M20 | M320]
    C, M = (small[column].to_numpy(float) for column in ("flops_C", "tokens_per_param"))
    size = small.params_N.to_numpy(float)
    form = FORMS["overtraining"]
    columns = {"N": size, "D": M * size, "C": C}
    table = pandas.DataFrame({**columns, "loss": small.loss_c4_val.to_numpy(float)})
    options = FitOptions(form="overtraining", objective="least-squares", residuals="raw", bootstrap=100)
    fit = fit_runs(table, options)
    assert fit.law is not None and fit.form is form
    np.testing.assert_allclose(fit.law.theta, [1.83665, 212.24, 366.69, 0.1364], rtol=5e-4)


def test_a_form_that_takes_repeated_units_for_new_ones_says_so() -> None:
    table = repeated()
    fit = fit_runs(table, FitOptions(bootstrap=100))
    again = int((EPOCHS > 1).sum())
    assert any(f"{again} of 49 trainings read their data up to 100 times" in text for text in fit.notes)
    once = fit_runs(table.assign(unique_tokens=table.D), FitOptions(bootstrap=100))
    assert not any("times" in text for text in once.notes)


def test_the_best_split_of_limited_data_is_that_of_brute_force() -> None:
    """More compute than the data feed goes into repetition and size, up to a plateau that no compute leaves."""
    truth = np.array([LAWS["data-constrained"][1]])
    cost, unique = Cost(6, 0, 0.5, 0), 1e9
    form = WithUnique(unique)
    for C in (1e18, 1e21, 1e23):
        sizes = np.geomspace(1e5, 1e13, 200_001)
        units = cost.units(sizes, C)
        losses = FORMS["data-constrained"].loss(truth[0], N=sizes, D=units, unique_tokens=np.full(len(sizes), unique))
        N, D, loss = (float(value[0]) for value in form.optimal(truth, cost, C))
        assert loss == pytest.approx(losses.min(), rel=1e-9)
        assert form.loss(truth[0], N=N, D=D) == pytest.approx(loss, rel=1e-12)
    assert 4 * unique < D  # at 1e23 FLOPs
    free = CHINCHILLA.optimal(truth[:, :5], cost, 1e17)
    np.testing.assert_allclose(form.optimal(truth, cost, 1e17), free, rtol=1e-4)  # the data are not used up
    plateau = float(form.loss(truth[0], N=1e30, D=1e30))
    goals = np.array([float(form.optimal(truth, cost, 1e20)[2][0]), 0.999 * plateau])
    reached = form.required(np.repeat(truth, 2, axis=0), cost, goals)[2]
    assert reached[0] == pytest.approx(1e20, rel=1e-4) and reached[1] == math.inf


def test_predict_takes_the_unique_tokens(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    repeated().to_csv(path, index=False)
    made = CliRunner().invoke(main, ["fit", str(path), "--form", "data-constrained", "--draws", "100"])
    assert made.exit_code == 0, made.output
    where = str(tmp_path / "runs-fit")
    asked = ["--N", "1e9", "--D", "4e10", "--json"]
    once, again = (
        json.loads(CliRunner().invoke(main, ["predict", where, *asked, "--unique-tokens", units]).output)["loss"]
        for units in ("40B", "1B")
    )
    expected = [FORMS["data-constrained"].loss(np.array(LAWS["data-constrained"][1]), N=1e9, D=4e10, unique_tokens=u)
                for u in (4e10, 1e9)]  # fmt: skip
    assert [once["value"], again["value"]] == pytest.approx(expected, rel=0.01)
    best = CliRunner().invoke(main, ["predict", where, "--compute", "1e22", "--unique-tokens", "1B"])
    assert best.exit_code == 0 and "D* " in best.output, best.output
    plain = CliRunner().invoke(main, ["fit", str(path), "--ignore", "unique_tokens", "--draws", "100"])
    assert plain.exit_code == 0, plain.output
    refused = CliRunner().invoke(main, ["predict", where, "--compute", "1e22", "--unique-tokens", "1B"])
    assert refused.exit_code == 2 and "fit with --form data-constrained" in refused.output
