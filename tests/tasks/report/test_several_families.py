"""The report on several families: true to the comparison, complete in itself, and useful where little can be told."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from overtaking_cases import EARLY, LATE, fitted
from page_cases import Page
from report_artifacts import committed, training
from report_cases import HOSTILE
from task_context import context_of

from reducible.tasks.colours import family_colour
from reducible.tasks.fit import comparison as compare_task
from reducible.tasks.fit.overtaking import Comparison, compare
from reducible.tasks.fit.result import Fit
from reducible.tasks.report import several_families as families
from reducible.tasks.report import style
from reducible.tasks.report.page import Report
from reducible.tasks.report.report_spec import FamiliesReportSpec
from reducible.tasks.report.scene import Curve, Figure
from reducible.tasks.report.several_families import write_families_report
from reducible.tasks.words import number, power_of_ten, with_powers

NAMES = ("early", "late")


def spec(*names: str, **more: object) -> FamiliesReportSpec:
    given = {"title": "Families", "description": "What was done.", "unit": "step", "predict": "my sweep"}
    return FamiliesReportSpec.model_validate({**given, "families": names, "declared": names, **more})


@cache
def fits() -> dict[str, Fit]:
    return {"early": fitted(EARLY, 0.001, 1), "late": fitted(LATE, 0.001, 2)}


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    wanted = spec(*NAMES, recipe=f"name: {HOSTILE}")
    return write_families_report(fits(), compare(fits()), wanted, folder, provenance={"code": "abc123"})


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.path.read_text())


def test_the_answer_is_the_comparison_s(page: Page) -> None:
    found = compare(fits())
    (where,) = [one for one in found.overtakings[0].crossings if one.sure]
    assert with_powers(found.overtakings[0].sentence) in page.text
    assert power_of_ten(where.compute.value) in page.text
    assert f"{power_of_ten(where.compute.low)} to {power_of_ten(where.compute.high)}" in page.text
    assert found.shared_E.sentence in page.text
    for fit in fits().values():
        assert fit.law is not None
        for estimate in (fit.law.E, fit.law["alpha"], fit.law["beta"]):
            assert f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})" in page.text
            assert repr(fit.law.E.value) in page.text


def test_the_page_is_complete_in_itself_and_its_links_lead_somewhere(page: Page, report: Report) -> None:
    for image in page.all("img"):
        assert (image["src"] or "").startswith("data:image/png;base64,") and image["alt"]
    assert len(page.all("img")) == sum(len(figure.panels) for figure in report.figures) == 3 + 2 * 10
    assert not page.all("script")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "two families share an id"
    targets = {(a["href"] or "")[1:] for a in page.all("a") if (a["href"] or "").startswith("#")}
    assert targets <= set(ids) and {"family-early", "family-late"} <= targets
    assert "<script" not in report.path.read_text()


def test_every_family_shows_its_own_runs_and_verdict(page: Page) -> None:
    assert len(page.all("details")) >= 2
    for fit in fits().values():
        assert fit.health.verdict in page.text
    assert page.text.count("All runs") == page.text.count("Health of the fit") == 2


def test_losses_are_in_the_unit_of_the_data(page: Page) -> None:
    assert "nats per step" in page.text and "token" not in page.text


def test_the_next_command_names_a_family(page: Page) -> None:
    assert "reducible predict 'my sweep' --family early --compute 1e22" in page.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_families_that_tell_little_still_give_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "draw", lambda *_: [])  # the pictures of each one are test_report_page.py's matter
    early, late = fits().values()
    lawless = replace(
        late,
        law=None,
        profile=None,
        allocation=None,
        isoflop=None,
        frontier=replace(late.frontier, E=None, K=None, gamma=None, points=()),
        health=replace(late.health, verdict="too few runs", identified=False),
    )
    cases = {"lawless": {"early": early, "late": lawless}, "alone": {"early": early}, "both": {"late": lawless}}
    for name, found in cases.items():
        folder = tmp_path / name
        wanted = spec(*found, declared=NAMES)
        html = write_families_report(found, compare(found), wanted, folder).path.read_text()
        text = Page(html).text
        assert not re.search(r"\b(nan|inf|None)\b", text), re.findall(r".{30}\b(?:nan|inf|None)\b.{30}", text)
        assert ("no law: too few runs" in text) == ("late" in found)
        assert ("nothing to compare" in text) == (len(found) == 1)
        assert family_colour(0 if "early" in found else 1) in html  # a colour stays with its place in the recipe


def test_the_tasks_leave_comparison_page_figures_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[str]] = {}

    def draw(fit: Fit, folder: Path, unit: str, curves: Sequence[Curve]) -> list[Figure]:
        (folder / "loss.png").write_bytes(b"")
        drawn[folder.name] = [curve.name for curve in curves]
        return []

    monkeypatch.setattr(families, "draw", draw)
    inputs = {}
    for name, fit in fits().items():
        folder = tmp_path / name
        folder.mkdir()
        fit.save(folder / "fit.json")
        inputs[name] = committed(folder, "fit")
    asked = compare_task.CompareSpec(name="x", families=NAMES)
    compare_task.run(context_of("compare x", asked, inputs, tmp_path, staging="compare"))
    compared = tmp_path / "compare"
    assert Comparison.load(compared / "comparison.json").to_dict() == compare(fits()).to_dict()

    shown = {f"{name}/fit": folder for name, folder in inputs.items()}
    shown |= {"comparison": committed(compared, "compare")}
    shown["late/cell-0000"] = training(tmp_path / "cell", "late C=1", {10: 4.0, 50: 3.0})
    families.run(context_of("report x", spec(*NAMES), shown, tmp_path))
    staging = tmp_path / "staging"
    page = (staging / "report.html").read_text()
    assert drawn == {"early": [], "late": ["late C=1"]} and "compare-identity" in page
    record = staging / "record"
    assert (record / "files" / "report.html").read_text() == page
    assert (record / "figures" / "families-loss.png").is_file() and (record / "figures" / "late" / "loss.png").is_file()
    described = json.loads((record / "describe.json").read_text())
    assert described["kind"] == "sweep" and described["tags"] == {"sweep": "x", "identified": "identified"}
    metrics = json.loads(next(record.glob("metrics-*.jsonl")).read_text())["metrics"]
    law = fits()["late"].law
    assert law is not None and metrics["late/law/E"] == law.E.value
    assert "late overtakes early at" in (record / "note.md").read_text().splitlines()[0]
