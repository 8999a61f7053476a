"""The tables of what people ask: true to the law, silent where the runs do not say, with money where a price is set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_cases import Page
from report_cases import degenerate, sound
from scipy.optimize import minimize_scalar

from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.confirmation import Confirmation
from reducible.tasks.fit.learning_rates import LearningRates, learning_rates, search_of
from reducible.tasks.fit.predict import gain, predict
from reducible.tasks.fit.result import Estimate, Fit
from reducible.tasks.report.page import write_report
from reducible.tasks.report.questions import questions
from reducible.tasks.report.report_spec import ReportSpec
from reducible.tasks.words import count, number, power_of_ten, typed

SPEC = ReportSpec(title="A sweep", predict="my sweep")
PRICED = ReportSpec(title="A sweep", predict="my sweep", price=2.5)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reducible.tasks.report.page.draw", lambda *_: [])
        yield


def page_of(
    fit: Fit,
    folder: Path,
    spec: ReportSpec = SPEC,
    held: Sequence[Confirmation] = (),
    rates: LearningRates | None = None,
) -> Page:
    return Page(write_report(fit, spec, folder, confirmed=held, rates=rates).path.read_text())


def timed(fit: Fit) -> Fit:
    return replace(fit, runs=tuple(replace(run, device_flops=2e10) for run in fit.runs))


def test_the_tables_are_those_of_predict(tmp_path: Path) -> None:
    fit = sound()
    page = page_of(fit, tmp_path)
    for times in (1, 3, 10, 30, 100):
        found = predict(fit, compute=times * fit.largest_compute)
        assert count(found.N.value) in page.text and number(found.loss.value) in page.text
    best = best_loss(fit)
    assert best is not None
    half = best.E.value + float(best.reducible(fit.largest_compute)[0]) / 2
    assert power_of_ten(predict(fit, loss=half).compute.value) in page.text
    ten = gain(fit, 10)
    assert f"falls by {number(ten.difference.value, 3)}" in page.text
    for command in ("--gain 10", f"--compute {typed(10 * fit.largest_compute)}", f"--loss {typed(half)}", "--N "):
        assert f"reducible predict 'my sweep' {command}" in page.text


def test_the_price_of_being_off_is_that_of_brute_force() -> None:
    fit = sound()
    law = fit.law
    assert law is not None
    compute = 10 * fit.largest_compute

    def loss(log_N: float) -> float:
        return float(law.loss(N=np.exp(log_N), D=fit.cost.units(np.exp(log_N), compute)))

    brute = minimize_scalar(loss, bounds=(5, 30), method="bounded", options={"xatol": 1e-10})
    found = questions(fit, best_loss(fit), SPEC).off
    assert [one.times for one in found] == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    for one in found:
        assert one.model.penalty is not None
        assert one.model.penalty.value == pytest.approx(loss(brute.x + np.log(one.times)) - brute.fun, abs=1e-6)


def test_a_price_adds_hours_and_money_and_a_speed_alone_hours(tmp_path: Path) -> None:
    fit = timed(sound())
    page = page_of(fit, tmp_path, PRICED)
    hours = 10 * fit.largest_compute / 2e10 / 3600
    assert number(hours, 3) in page.text and number(2.5 * hours, 3) in page.text
    assert "device-hours" in page.text and "at 2.50 an hour" in page.text
    alone = page_of(fit, tmp_path)
    assert number(hours, 3) in alone.text and "an hour" not in alone.text
    assert "No cost: these runs did not measure the speed of a device" in page_of(sound(), tmp_path, PRICED).text


@pytest.mark.parametrize("name", list(degenerate()))
def test_what_the_runs_do_not_say_is_left_out(name: str, tmp_path: Path) -> None:
    fit = degenerate()[name]
    found = questions(fit, best_loss(fit), SPEC)
    page = page_of(fit, tmp_path)
    assert ("Questions" in page.text) == bool(found.sizes)
    if fit.law is None:
        assert not found.sizes and not found.off and found.gain is None


def test_predictions_are_shown_beside_what_came(tmp_path: Path) -> None:
    held = Confirmation("a-1e15", "a", 1e6, 2e7, 1e15, 9.5, Estimate(2.0, 1.9, 2.1), 2.05)
    missed = replace(held, name="b-1e16", actual=2.2)
    lost = replace(held, name="c-1e17", actual=None, reason="diverged: loss is not finite")
    page = page_of(sound(), tmp_path, held=[held, missed, lost])
    assert "Did the prediction hold?" in page.text
    assert "The prediction held: a predicted 2 [1.9, 2.1] for a-1e15" in page.text and "+2.50" in page.text
    assert "The prediction did not hold: a predicted" in page.text and "+10.00" in page.text
    assert "c-1e17 (9.5 times its largest run), which has no loss: diverged" in page.text
    assert "Did the prediction hold?" not in page_of(sound(), tmp_path).text


def test_learning_rates_are_shown_if_they_were_searched(tmp_path: Path) -> None:
    cells = [(N, D) for N in (1e3, 2e3, 4e3) for D in (1e5, 4e5, 1.6e6)]
    trials = [[float(rate), float(2 + np.log(rate / 0.01) ** 2)] for rate in np.geomspace(1e-3, 1e-1, 5)]
    found = {"learning_rate": 0.01, "trials": trials}
    edge = {"learning_rate": 0.1, "trials": [*trials[:4], [0.1, 1.0]]}
    searches = [search_of(f"N={N:g} D={D:g}", N, D, 256, found) for N, D in cells]
    page = page_of(sound(), tmp_path, rates=learning_rates([*searches, search_of("odd", 1e3, 1e7, 256, edge)]))
    assert "The best learning rate is the highest that was tried in 1 search of 10 (odd)" in page.text
    assert (
        "takes its rate from this law" in page.text
        and "no law of the best batch" not in page.text.split("No law of")[0]
    )
    few = page_of(sound(), tmp_path, rates=learning_rates(searches[:3]))
    assert "No law of the best learning rate: 3 searches inside the grid" in few.text
    assert "Learning rates" not in page_of(sound(), tmp_path).text
