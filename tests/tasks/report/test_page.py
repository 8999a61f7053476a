"""The report's page: complete in itself, true to the fit, safe with foreign names, useful with too little data."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from page_cases import Page
from PIL import Image
from report_cases import HOSTILE, degenerate, sound
from scipy.optimize import minimize_scalar

from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Estimate, Fit
from reducible.tasks.report import style
from reducible.tasks.report.page import Report, write_report
from reducible.tasks.report.report_spec import ReportSpec
from reducible.tasks.words import count, number

SPEC = ReportSpec(
    title="A sweep",
    description="What was done.",
    recipe=f"name: {HOSTILE}",
    data={"source": "builtin:stdlib", "fingerprint": "ab" * 32},
    predict="my sweep",
)

DEGENERATE = [
    "one budget",
    "three runs",
    "everything excluded",
    "no minimum accepted",
    "E not identified",
    "open and unknown intervals",
    "losses below E",
    "no optimum",
    "no budgets",
]


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 60)  # what is in the pictures is the other file's matter
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(sound(), SPEC, tmp_path_factory.mktemp("report"), provenance={"code": "abc123"})


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return report.path.read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def cases() -> dict[str, Fit]:
    found = degenerate()
    assert list(found) == DEGENERATE
    return found


def test_the_page_loads_nothing_from_anywhere(html: str, page: Page) -> None:
    loading = {"src", "srcset", "data", "poster", "background", "action"}
    for tag, attributes in page.tags:
        for name in loading & attributes.keys():
            assert (attributes[name] or "").startswith("data:"), (tag, name)
        if tag == "link":
            assert (attributes["href"] or "").startswith("data:")
    assert not page.all("script") and not page.all("iframe")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_every_image_is_a_png_that_decodes_with_a_description(report: Report, page: Page) -> None:
    images = page.all("img")
    assert len(images) == sum(len(figure.panels) for figure in report.figures) == 10
    for image in images:
        head, _, content = (image["src"] or "").partition(",")
        assert head == "data:image/png;base64" and image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as decoded:
            decoded.load()
            assert decoded.format == "PNG"


def test_anchors_of_the_navigation_exist(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    targets = {(a["href"] or "")[1:] for a in page.all("a") if (a["href"] or "").startswith("#")}
    assert len(targets) == 9 and targets <= ids


def test_numbers_on_the_page_are_those_of_the_fit(page: Page) -> None:
    fit = sound()
    assert fit.law is not None
    for estimate in (fit.law.E, fit.law["A"], fit.law["B"], fit.law["alpha"], fit.law["beta"]):
        assert repr(estimate.value) in page.text  # every digit, in captions and in the table of parameters
        assert f"{number(estimate.low)} to {number(estimate.high)}" in page.text
    ten = predict(fit, compute=10 * fit.largest_compute)
    for estimate in (ten.N, ten.D):
        assert count(estimate.value) in page.text
        assert f"{count(estimate.low)} to {count(estimate.high)}" in page.text
    assert number(ten.loss.value) in page.text
    assert f"{fit.health.residual_deviation!r}" in page.text and fit.health.verdict in page.text
    assert f"n = {len(fit.used)} of {len(fit.runs)} runs" in page.text
    for run in fit.runs:
        assert run.name in page.text
        if run.used:
            assert number(run.loss, 5) in page.text


def test_the_price_of_half_the_reducible_loss_holds_by_brute_force(page: Page) -> None:
    """Independent of the fit's own search: minimise the law over N at each C, and bisect C."""
    fit = sound()
    law = fit.law
    assert law is not None

    def reducible(log_C: float) -> float:
        def loss(log_N: float) -> float:
            return float(law.loss(N=np.exp(log_N), D=fit.cost.units(np.exp(log_N), np.exp(log_C))))

        return minimize_scalar(loss, bounds=(3, 40), method="bounded", options={"xatol": 1e-10}).fun - law.E.value

    start = np.log(fit.largest_compute)
    low, high = start, start + 20
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reducible(middle) > reducible(start) / 2 else (low, middle)
    assert f"{number(float(np.exp(low - start)), 3)} × the compute" in page.text


def test_every_excluded_run_is_named_with_its_reason(page: Page) -> None:
    assert len(sound().excluded) == 3
    for run in sound().excluded:
        assert run.reason and f"{run.name} : {run.reason}" in page.text
        assert f"excluded: {run.reason}" in page.text


def test_foreign_names_are_escaped(html: str, page: Page) -> None:
    assert "<script" not in html
    assert HOSTILE in page.text and unescape(html).count(HOSTILE) >= 3


def test_the_next_command_can_be_typed(page: Page) -> None:
    assert "reducible predict 'my sweep' --compute 6.4e13" in page.text


def test_provenance_and_recipe_are_printed(page: Page) -> None:
    for text in ("abc123", "ab" * 32, "builtin:stdlib", "name: "):
        assert text in page.text


def test_equal_input_gives_equal_bytes(report: Report, tmp_path: Path) -> None:
    again = write_report(Fit.from_dict(sound().to_dict()), SPEC, tmp_path, provenance={"code": "abc123"})
    assert again.path.read_bytes() == report.path.read_bytes()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_a_degenerate_fit_still_gives_a_page(name: str, cases: dict[str, Fit], tmp_path: Path) -> None:
    fit = cases[name]
    report = write_report(fit, SPEC, tmp_path)
    html = report.path.read_text()
    page = Page(html)
    for run in fit.excluded:
        assert run.name in page.text
    for figure in report.figures:
        assert bool(figure.panels) != bool(figure.missing)
        if figure.missing:
            assert figure.missing in page.text
    assert not re.search(r"\b(nan|inf|None)\b", page.text), re.findall(r".{30}\b(?:nan|inf|None)\b.{30}", page.text)
    answered = fit.used and best_loss(fit) is not None
    if answered and fit.law is not None and not fit.health.identified:
        assert fit.health.level in page.text and "not known" in page.text
    if fit.used and not answered:
        assert "No law yet" in page.text and fit.health.verdict in page.text
    if not fit.used:
        assert f"none of the {len(fit.runs)} runs could be used" in page.text


@pytest.mark.parametrize(("low", "known"), [(0.0, False), (1.1, True)])
def test_the_E_of_the_minima_is_claimed_only_where_they_identify_it(low: float, known: bool, tmp_path: Path) -> None:
    fit = sound()
    frontier = replace(fit.frontier, E=Estimate(1.2, low, 1.3))
    fit = replace(fit, law=None, frontier=frontier, health=replace(fit.health, identified=not known))
    text = Page(write_report(fit, SPEC, tmp_path).path.read_text()).text
    assert ("What no compute removes is about" in text) == known
    assert ("Identified by these runs" in text) == known
    assert ("not known" in text) == (not known)


def test_losses_at_or_below_E_are_named_not_dropped(cases: dict[str, Fit], tmp_path: Path) -> None:
    fit = cases["losses below E"]
    assert fit.law is not None
    text = Page(write_report(fit, SPEC, tmp_path).path.read_text()).text
    below = [run.name for run in fit.used if run.loss <= fit.law.E.value]
    assert len(below) > 5 and f"At or below E, so not on a logarithmic axis (arrows): {below[0]}" in text
