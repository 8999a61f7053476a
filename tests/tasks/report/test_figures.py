"""The figures: drawn, not blank, and the lines in them where the fit says."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_cases import sound

from reducible.tasks import words
from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Estimate
from reducible.tasks.report.figures import draw
from reducible.tasks.report.intervals import interval
from reducible.tasks.report.scene import Curve, Figure
from reducible.tasks.report.style import Palette

CURVES = [
    Curve("a", 1e4, (1e9, 1e10, 1e11), (3.0, 2.5, 2.2)),
    Curve("b", 1e5, (1e9, 1e10, 1e11, 1e12), (3.5, float("nan"), 2.4, 1.9)),
    Curve("stopped early", 1e5, (1e9, 1e10), (3.5, 9e4)),
    Curve("one point", 1e5, (1e9,), (3.5,)),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    return draw(sound(), tmp_path_factory.mktemp("figures"), "token", CURVES)


def test_all_figures_are_drawn_and_none_is_blank(figures: list[Figure]) -> None:
    keys = ["loss", "isoflop", "allocation", "residuals", "profile", "back-test", "learning"]
    assert [figure.key for figure in figures] == keys
    for panel in (panel for figure in figures for panel in figure.panels):
        with Image.open(panel.path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(float)
            assert image.width >= 900  # sharp at twice the width of a phone
            assert image.info["Description"]  # its caption goes with it
        inside = pixels[pixels.shape[0] // 6 : -pixels.shape[0] // 3, pixels.shape[1] // 5 : -pixels.shape[1] // 10]
        assert inside.std() > 5  # something is drawn inside the axes
        edge = np.concatenate([pixels[:4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3), pixels[:, :4].reshape(-1, 3)])
        assert edge.min() > 250, f"{panel.path.name}: ink runs over the edge"


def test_captions_hold_unrounded_parameters_and_n(figures: list[Figure]) -> None:
    law, captions = sound().law, {figure.key: figure.caption for figure in figures}
    assert law is not None
    for estimate in (law.E, law["A"], law["B"], law["alpha"], law["beta"]):
        assert repr(estimate.value) in captions["loss"]
    for key in ("loss", "isoflop", "allocation", "residuals", "profile"):
        assert "n = 24 of 27 runs" in captions[key]
    assert captions["learning"].startswith("3 trainings")


def test_the_line_of_the_best_loss_is_what_predict_says() -> None:
    fit = sound()
    best = best_loss(fit)
    assert best is not None and best.source == "law"
    for factor in (0.1, 1.0, 10.0):
        C = factor * fit.largest_compute
        predicted = predict(fit, compute=C)
        assert best.loss(C)[0] == pytest.approx(predicted.loss.value, rel=1e-9)
        low, high = best.reducible_band(C)
        assert (low[0], high[0]) == pytest.approx((predicted.reducible.low, predicted.reducible.high), rel=1e-9)


def test_the_band_of_the_reducible_loss_holds_the_uncertainty_of_E() -> None:
    """Far out, where the reducible loss is small, a band with E held fixed would be much narrower."""
    fit = sound()
    best = best_loss(fit)
    assert best is not None and fit.law is not None
    C = 100 * fit.largest_compute
    low, high = best.reducible_band(C)
    wide = np.percentile([draw[0] for draw in fit.law.draws], [2.5, 97.5])
    assert high[0] - low[0] > 0.5 * (wide[1] - wide[0])


def test_without_a_law_the_line_goes_through_the_minima() -> None:
    fit = replace(sound(), law=None)
    best, frontier = best_loss(fit), fit.frontier
    assert best is not None and best.source == "minima"
    assert frontier.gamma is not None and frontier.E is not None and frontier.K is not None
    assert best.exponent(1e12).value == pytest.approx(frontier.gamma.value)
    assert best.to_halve(1e12).value == pytest.approx(2 ** (1 / frontier.gamma.value))
    assert best.loss([1e11, 1e13]) == pytest.approx(frontier.loss([1e11, 1e13]))


def test_a_budget_has_one_look_in_all_figures_also_for_runs_that_were_excluded() -> None:
    fit = sound()
    palette = Palette(fit)
    assert len({look.colour for look in palette.budgets.values()}) == len(palette.budgets) == 4
    assert len({look.marker for look in palette.budgets.values()}) == 4
    for run in fit.runs[:-1]:  # the last never began
        assert run.budget is not None
        assert palette.look(run) == palette.at(run.budget) == palette.at(run.budget * 1.01)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.number(1.2), "1.200"),
        (words.number(-0.5), "−0.5000"),
        (words.number(1.3e14), "1.3×10¹⁴"),
        (words.number(None), "unknown"),
        (words.count(12_345), "12.3k"),
        (words.count(999_900), "1M"),
        (words.typed(6.4e13), "6.4e13"),
        (words.percent(0.004), "0.40\u00a0%"),
        (words.percent(0.35), "35\u00a0%"),
        (words.signed_percent(-0.0012), "−0.12\u00a0%"),
        (words.signed_percent(-1e-9), "0.00\u00a0%"),
        (words.number(21_180.4), "21180"),
        (words.number(1234.0, 3), "1234"),
        (interval(Estimate(1, 0.5, float("inf"))), "at least 0.5000, open above"),
        (interval(Estimate(1)), "interval unknown"),
        (interval(Estimate(1, 0.5, 2)), "0.5000 to 2.000"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.listed(["a", "b", "c"], most=2), "a, b and 1 more"),
    ],
)
def test_numbers_in_words(written: str, expected: str) -> None:
    assert written == expected
