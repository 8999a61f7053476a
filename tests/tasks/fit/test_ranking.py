"""`--form auto`: the form that generated the runs wins the back-test, and what cannot be told apart is said."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from law_cases import isoflop_design, table_of
from page_cases import Page

from reducible.pipelines.cli import main
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.laws.registry import FORMS
from reducible.tasks.fit.ranking import rank
from reducible.tasks.fit.result import BackTest, Fit

AUTO = FitOptions(form="auto", bootstrap=100)


def back_test(*levels: Sequence[float]) -> list[BackTest]:
    """A back-test with these errors: one sequence for each level of compute."""
    rows = []
    for level, errors in enumerate(levels, 1):
        rows += [BackTest(level, f"run {i}", 10 * level, 10.0, 1 + e, 1.0, e) for i, e in enumerate(errors)]
    return rows


def test_a_form_that_is_better_at_every_level_is_told_from_the_others() -> None:
    good, bad = back_test([0.01, -0.01], [0.012], [0.008]), back_test([0.05, -0.02], [0.03], [0.04])
    found = rank({"chinchilla": bad, "farseer": good})
    assert found.chosen == "farseer" and found.told and [row.form for row in found.forms] == ["farseer", "chinchilla"]
    assert found.forms[0].mean == pytest.approx(0.01) and found.forms[0].worst == pytest.approx(0.012)
    assert found.forms[1].median == pytest.approx(0.035) and (found.levels, found.predictions) == (3, 4)
    assert found.sentence == "farseer predicts best, beyond chance over 3 levels of compute"


def test_levels_that_disagree_tell_nothing_and_the_standard_form_is_taken() -> None:
    one, other = back_test([0.01], [0.03], [0.02], [0.01]), back_test([0.03], [0.01], [0.01], [0.02])
    found = rank({"tied": one, "chinchilla": other, "compute": back_test([0.5], [0.4], [0.6], [0.5])})
    assert not found.told and found.chosen == "chinchilla"
    assert "cannot tell tied and chinchilla apart" in found.sentence
    assert [row.equal for row in found.forms] == [True, True, False]
    without = rank({"farseer": one, "tied": other})
    assert without.chosen == "tied" and "the one with the fewest parameters" in without.sentence


def test_two_levels_are_too_few_to_tell() -> None:
    found = rank({"chinchilla": back_test([0.5], [0.5]), "tied": back_test([0.001], [0.001])})
    assert not found.told and found.chosen == "chinchilla" and "(fewer than 3)" in found.sentence


def test_forms_are_compared_by_what_all_predict() -> None:
    """One that skips the hard level gains nothing by it, and one that predicts next to nothing is not compared."""
    easy, hard = [0.01, 0.01], [0.2, 0.2]
    whole = back_test(easy, easy, easy, hard)
    found = rank({"chinchilla": whole, "farseer": back_test(easy, easy, easy), "tied": back_test(easy)})
    assert found.predictions == 6 and {row.form for row in found.forms if not row.reason} == {"chinchilla", "farseer"}
    assert found.forms[0].mean == found.forms[1].mean
    assert [row.reason for row in found.forms if row.form == "tied"] == ["2 predictions where others have 8"]


def test_the_form_of_compute_alone_does_not_win_on_a_grid_of_sizes() -> None:
    fit = fit_runs(table_of(*isoflop_design(7, 7), noise=0.002), AUTO)
    ranking = fit.ranking
    assert ranking is not None and ranking.chosen == "chinchilla" and fit.form.name == "chinchilla"
    order = [row.form for row in ranking.forms if not row.reason]
    assert set(order) == set(FORMS) - {"data-constrained"} and order[-1] == "compute"
    assert not next(row for row in ranking.forms if row.form == "compute").equal
    text = summary(fit)
    assert ranking.sentence in text and all(row.form in text for row in ranking.forms)
    assert "not ranked: the table has no unique_tokens" in text
    assert Fit.from_dict(fit.to_dict()).ranking == ranking and fit.options["form"] == "chinchilla"


def test_repeated_data_are_found_by_the_form_that_knows_them() -> None:
    rng = np.random.default_rng(3)
    sizes, durations = np.geomspace(1e7, 3e9, 7), np.geomspace(2e8, 3e11, 7)
    N, D = (axis.ravel() for axis in np.meshgrid(sizes, durations, indexing="ij"))
    unique = D / rng.choice([1.0, 1.0, 4.0, 20.0, 100.0], size=len(D))
    truth = np.array([1.87, 521.0, 1488.0, 0.353, 0.353, 15.4, 5.3])
    loss = FORMS["data-constrained"].loss(truth, N=N, D=D, unique_tokens=unique) * np.exp(0.002 * rng.normal(size=49))
    fit = fit_runs(pandas.DataFrame({"N": N, "D": D, "C": 6 * N * D, "unique_tokens": unique, "loss": loss}), AUTO)
    assert fit.ranking is not None and fit.ranking.told and fit.form.name == "data-constrained"


def test_the_command_ranks_a_table_of_compute_and_loss(tmp_path: Path) -> None:
    C = np.geomspace(1e18, 1e22, 14)
    noise = np.exp(0.002 * np.random.default_rng(1).normal(size=14))
    path = tmp_path / "runs.csv"
    pandas.DataFrame({"C": C, "loss": (1.5 + 900 * C**-0.18) * noise}).to_csv(path, index=False)
    made = CliRunner().invoke(main, ["fit", str(path), "--form", "auto", "--draws", "100"])
    assert made.exit_code == 0, made.output
    assert "compute is the only form that these runs can carry and test" in made.output
    assert "chinchilla        not ranked: the table has no N and D" in made.output
    page = Page((tmp_path / "runs-fit/report.html").read_text())
    assert "compute is the only form that these runs can carry and test" in page.text
    assert "the table has no N and D" in page.text and "taken" in page.text
    read = CliRunner().invoke(main, ["predict", str(tmp_path / "runs-fit"), "--compute", "1e23"])
    assert read.exit_code == 0, read.output


def test_too_few_runs_are_ranked_by_nothing_and_say_so() -> None:
    fit = fit_runs(table_of(*(axis[:3] for axis in isoflop_design(1, 5))), AUTO)
    assert fit.ranking is not None and not fit.ranking.told and fit.law is None
    assert "no back-test to rank forms by" in fit.ranking.sentence
    assert all(row.reason and math.isnan(row.mean) for row in fit.ranking.forms)
