"""A form of a law is one object: what is merely registered goes through fit, prediction, summary, report, command."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from form_cases import COMPUTE_TRUTH, TIED_TRUTH, TOY, compute_table, tied_table
from law_cases import ALPHA, BETA, QUICK, A, B, E, isoflop_design, table_of
from page_cases import Page
from scipy.optimize import minimize, minimize_scalar

from reducible.pipelines.cli import main
from reducible.tasks.errors import UserError
from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.fit_summary import prediction_text, summary
from reducible.tasks.fit.fit_task import metrics_of
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.registry import FORMS
from reducible.tasks.fit.laws.tied import TIED
from reducible.tasks.fit.objective import huber
from reducible.tasks.fit.overtaking import compare
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Fit
from reducible.tasks.report import style
from reducible.tasks.report.page import write_report
from reducible.tasks.report.report_spec import FamiliesReportSpec, ReportSpec
from reducible.tasks.report.report_task import note
from reducible.tasks.report.several_families import write_families_report


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        patch.setitem(FORMS, TOY.name, TOY)
        yield


@pytest.fixture(scope="module")
def tied(registered: None) -> Fit:
    return fit_runs(tied_table(), FitOptions(form="tied", bootstrap=200))


@pytest.fixture(scope="module")
def toy(registered: None) -> Fit:
    """Of a form that is merely registered: it gets through fit, prediction, summary and report like the package's."""
    return fit_runs(tied_table(), FitOptions(form="toy", bootstrap=200))


@pytest.fixture(scope="module")
def compute(registered: None) -> Fit:
    return fit_runs(compute_table(), FitOptions(form="compute", bootstrap=200))


def test_the_tied_optimum_is_that_of_an_independent_optimiser(tied: Fit) -> None:
    """Log-sum-exp and L-BFGS-B from many starts, as is usual, on the same sum of Huber terms."""
    log_N, log_D, log_loss = (np.log([getattr(run, key) for run in tied.used]) for key in ("N", "D", "loss"))

    def objective(p: np.ndarray) -> float:
        model = np.logaddexp.reduce([np.full_like(log_N, p[0]), p[1] - p[3] * log_N, p[2] - p[3] * log_D])
        return float(huber(model - log_loss, 1e-3).sum())

    options = {"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-15, "gtol": 1e-12}
    starts = [[e, a, a, alpha] for e in (-0.5, 0.5) for a in (3, 7) for alpha in (0.2, 0.5)]
    best = min(
        (minimize(objective, start, method="L-BFGS-B", options=options) for start in starts), key=lambda r: r.fun
    )
    assert tied.health.objective <= best.fun * (1 + 1e-6)
    assert tied.law is not None and tied.law.form is TIED
    assert [estimate.value for estimate in tied.law.parameters.values()] == pytest.approx(
        [*np.exp(best.x[:3]), best.x[3]], rel=0.02
    )


def test_tied_intervals_hold_the_truth(tied: Fit) -> None:
    assert tied.law is not None and tied.health.identified and tied.health.splits
    for name, truth in TIED_TRUTH.items():
        assert tied.law[name].low < truth < tied.law[name].high, name
    assert tied.law.table.shape == (200, 4)
    assert tied.back_tests and max(abs(test.error) for test in tied.back_tests) < 0.05


def test_a_tied_prediction_is_the_minimum_along_the_budget(tied: Fit) -> None:
    law, C = tied.law, 10 * tied.largest_compute
    assert law is not None

    def loss(log_N: float) -> float:
        return float(law.loss(N=math.exp(log_N), D=tied.cost.units(math.exp(log_N), C)))

    brute = minimize_scalar(loss, bounds=(5, 40), method="bounded", options={"xatol": 1e-10})
    best = predict(tied, compute=C)
    assert best.loss.value == pytest.approx(brute.fun, rel=1e-12)
    assert math.log(best.N.value) == pytest.approx(brute.x, abs=1e-5)
    assert best.N.low < best.N.value < best.N.high
    back = predict(tied, loss=best.loss.value)
    assert back.compute.value == pytest.approx(C, rel=1e-5) and back.N.value == pytest.approx(best.N.value, rel=1e-3)
    assert tied.allocation is not None and tied.allocation.a.value == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(UserError, match="at or below the irreducible loss"):
        predict(tied, loss=law.E.value)


@pytest.mark.parametrize("cost", [Cost(6, 0, 0.5, 0), Cost(6, 4000, 0.5, 0), Cost(5.8, -900, 1 / 3, 0)])
def test_the_searched_frontier_is_the_one_that_chinchilla_writes_down(cost: Cost) -> None:
    laws = np.array([[E, A, B, ALPHA, BETA], [0.0, 12.0, 40.0, 0.2, 0.6], [1.0, 3.0, 0.0, 0.3, 0.3]])
    for C in (1e15, 1e20):
        found, written = Form.optimal(CHINCHILLA, laws, cost, C), CHINCHILLA.optimal(laws, cost, C)
        np.testing.assert_allclose(found[2], written[2], rtol=1e-12)
        np.testing.assert_allclose(np.log(found[0]), np.log(written[0]), atol=1e-5)
        assert np.isnan(found[0]).tolist() == [False, False, True]  # without a term in D the largest N is best
        back = Form.required(CHINCHILLA, laws[:2], cost, found[2][:2])
        np.testing.assert_allclose(back[2], C, rtol=1e-6)
    assert Form.required(CHINCHILLA, laws[:1], cost, np.array([E]))[2][0] == math.inf


def test_a_law_of_compute_alone_predicts_loss_and_no_split(compute: Fit) -> None:
    """On one line of (N, D), where Chinchilla's law says nothing."""
    assert compute.law is not None and compute.health.identified and not compute.health.splits
    for name, truth in COMPUTE_TRUTH.items():
        assert compute.law[name].low < truth < compute.law[name].high, name
    C = 10 * compute.largest_compute
    best = predict(compute, compute=C)
    assert best.loss.low < COMPUTE_TRUTH["E"] + COMPUTE_TRUTH["K"] * C ** -COMPUTE_TRUTH["gamma"] < best.loss.high
    assert not best.splits and "N*" not in prediction_text(best) and "N*" not in summary(compute)
    assert predict(compute, loss=best.loss.value).compute.value == pytest.approx(C, rel=1e-9)
    line = best_loss(compute)
    assert line is not None and line.exponent(1e18).value == pytest.approx(compute.law["gamma"].value)


def test_a_form_that_is_merely_registered_is_fitted_like_the_same_formula_of_the_package(toy: Fit, tied: Fit) -> None:
    assert toy.law is not None and tied.law is not None and toy.form is TOY
    assert toy.law.table.tolist() == tied.law.table.tolist()
    assert predict(toy, compute=1e22).to_dict() == predict(tied, compute=1e22).to_dict()


@pytest.mark.parametrize("name", ["toy", "tied", "compute"])
def test_the_report_is_written(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fit: Fit = request.getfixturevalue(name)
    law = fit.law
    assert law is not None
    page = Page(write_report(fit, ReportSpec(title="Toy", predict="toy"), tmp_path).path.read_text())
    for estimate in law.parameters.values():
        assert repr(estimate.value) in page.text
    for meaning in law.form.meanings.values():
        assert meaning.format(units="tokens") in page.text
    assert law.form.formula in page.text and law.form.source[0] in page.text
    assert f"{3 * law.form.size} different runs or more" in page.text
    assert not re.search(r"\b(nan|inf|None|beta)\b", page.text), re.findall(
        r".{30}\b(?:nan|None|beta)\b.{30}", page.text
    )
    assert page.all("a") and law.form.source[1] in {a["href"] for a in page.all("a")}
    head = note(fit, ReportSpec(title="Toy")).splitlines()[0]
    assert head.startswith(f"**L{law.form.variables} = ") and f"^-{law.theta[-1]:.4g}" in head
    assert {f"law/{parameter}" for parameter in law.form.parameters} <= metrics_of(fit).keys()


def test_fits_of_different_forms_compare_on_one_page(tied: Fit, compute: Fit, tmp_path: Path) -> None:
    fits = {"tied": tied, "plain": compute}
    spec = FamiliesReportSpec(title="Both", families=("tied", "plain"), declared=("tied", "plain"))
    text = Page(write_families_report(fits, compare(fits), spec, tmp_path).path.read_text()).text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "α" in text and "γ" in text


def test_fit_json_names_the_form_and_reads_back(tied: Fit, tmp_path: Path) -> None:
    tied.save(tmp_path / "fit.json")
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["options"]["form"] == "tied" and list(content["law"]) == ["E", "A", "B", "alpha", "draws"]
    again = Fit.load(tmp_path / "fit.json")
    assert again.to_dict() == tied.to_dict() and again.form is TIED
    assert predict(again, compute=1e22).to_dict() == predict(tied, compute=1e22).to_dict()


def test_a_fit_json_from_before_there_were_forms_is_chinchilla_s() -> None:
    fit = fit_runs(table_of(*isoflop_design(), noise=0.003), QUICK)
    old = fit.to_dict()
    del old["options"]["form"]
    again = Fit.from_dict(old)
    assert again.form is CHINCHILLA and again.law == fit.law


def test_too_few_runs_are_counted_by_the_form() -> None:
    table = tied_table().iloc[[0, 1, 2, 7]]
    verdict = fit_runs(table, FitOptions(form="tied")).health.verdict
    assert "4 runs at distinct (N, D) cannot carry four parameters (at least 5, better 12)" in verdict
    few = fit_runs(compute_table().iloc[:3], FitOptions(form="compute"))
    assert "3 runs at distinct (C) cannot carry three parameters" in few.health.verdict


def test_the_command_takes_a_form_lists_all_and_refuses_others(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    tied_table().to_csv(table, index=False)
    made = CliRunner().invoke(main, ["fit", str(table), "--form", "tied", "--draws", "100"])
    assert made.exit_code == 0, made.output
    assert "L(N, D) = E + A N^-alpha + B D^-alpha" in made.output
    read = CliRunner().invoke(main, ["predict", str(tmp_path / "runs-fit/fit.json"), "--compute", "1e22"])
    assert read.exit_code == 0 and "N* " in read.output
    listed = CliRunner().invoke(main, ["fit", str(table), "--form"])
    assert listed.exit_code == 0 and [line.split()[0] for line in listed.output.splitlines()] == [*FORMS, "auto"]
    wrong = CliRunner().invoke(main, ["fit", str(table), "--form", "chinchila"])
    line = f"there is no form of a law 'chinchila'; nearest is 'chinchilla', all: {', '.join(FORMS)}"
    assert wrong.exit_code == 2 and line in wrong.output


def test_a_table_of_compute_and_loss_is_enough_for_a_law_of_compute(tmp_path: Path) -> None:
    """The same law, interval and prediction as with N and D; a form that splits compute refuses the table."""
    table = compute_table()
    whole, bare = tmp_path / "whole.csv", tmp_path / "bare.csv"
    table.to_csv(whole, index=False)
    table[["C", "loss"]].rename(columns={"C": "flops", "loss": "val_loss"}).to_csv(bare, index=False)
    refused = CliRunner().invoke(main, ["fit", str(bare)])
    assert refused.exit_code == 2 and "lacks the column N" in refused.output
    assert "--form compute needs C and loss alone" in refused.output
    for path in (whole, bare):
        made = CliRunner().invoke(main, ["fit", str(path), "--form", "compute", "--draws", "100"])
        assert made.exit_code == 0, made.output
        assert "N*" not in made.output and "nan" not in made.output
    with_sizes, without = (Fit.load(tmp_path / f"{name}-fit/fit.json") for name in ("whole", "bare"))
    assert without.law == with_sizes.law and without.health == with_sizes.health
    assert without.back_tests == with_sizes.back_tests
    assert predict(without, compute=1e24).loss == predict(with_sizes, compute=1e24).loss
    assert all(math.isnan(run.N) and math.isnan(run.D) for run in without.runs)
    assert without.allocation is None and without.isoflop is None and not without.frontier.points
    read = CliRunner().invoke(main, ["predict", str(tmp_path / "bare-fit"), "--compute", "1e24"])
    assert read.exit_code == 0 and "N*" not in read.output and "nan" not in read.output
    page = Page((tmp_path / "bare-fit/report.html").read_text())
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    assert "Spent as in these runs, ten times the compute removes" in page.text
    assert "best split" not in page.text and "best size;" not in page.text and "too few parameters" not in page.text


def test_seeds_of_one_compute_are_one_cell_where_N_and_D_are_not_known() -> None:
    table = compute_table()[["C", "loss"]]
    double = pandas.concat([table.assign(seed=0), table.assign(seed=1, loss=1.001 * table.loss)], ignore_index=True)
    fit = fit_runs(double, FitOptions(form="compute", bootstrap=100))
    assert (fit.health.runs, fit.health.cells) == (28, 14)
    again = fit_runs(pandas.concat([table, table], ignore_index=True), FitOptions(form="compute", bootstrap=100))
    assert len(again.used) == 14 and "same C and seed as run 1" in str(again.runs[14].reason)
