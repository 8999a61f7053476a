"""The report task: artifacts in, page, figures and a record for MLflow out."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from report_artifacts import committed, training
from report_cases import sound
from task_context import context_of

from reducible.tasks.report import report_task as task
from reducible.tasks.report import style
from reducible.tasks.report.curves import curves_of
from reducible.tasks.report.provenance import provenance
from reducible.tasks.report.report_spec import ReportSpec


def test_curves_are_the_validation_losses_against_exact_flops(tmp_path: Path) -> None:
    inputs = {
        "cell": training(tmp_path / "cell", "N=5k", {10: 4.0, 50: 3.0, 60: None, 70: float("nan")}),
        "data": committed(_folder(tmp_path / "data"), "dataset"),
    }
    (curve,) = curves_of(inputs)
    assert curve.name == "N=5k" and curve.N == 5000 and curve.kind == "validation"
    assert curve.C == (1e10, 5e10, 1e11) and curve.loss == (4.0, 3.0, 2.0)


def test_training_losses_serve_where_validation_was_never_taken_twice(tmp_path: Path) -> None:
    (curve,) = curves_of({"cell": training(tmp_path / "cell", "x", {10: 4.0, 50: 3.0}, "train/loss")})
    assert curve.kind == "training" and curve.C == (1e10, 5e10) and curve.loss == (4.0, 3.0)


def test_provenance_names_code_versions_and_artifacts(tmp_path: Path) -> None:
    inputs = {
        "fit": committed(_folder(tmp_path / "fit"), "fit"),
        "a": training(tmp_path / "a", "a", {}),
        "b": training(tmp_path / "b", "b", {}),
    }
    lines = provenance(inputs, datetime(2026, 11, 23, 12, 0, tzinfo=UTC))
    assert lines["written"] == "2026-11-23 12:00 UTC"
    assert lines["artifact: fit"] == "fit-identity"
    assert lines["trainings"].startswith("2, made from 20")
    assert "Python 3" in lines["versions"] and "matplotlib" in lines["versions"]


def test_the_task_leaves_page_figures_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 60)
    fit_folder = _folder(tmp_path / "fit")
    sound().save(fit_folder / "fit.json")
    inputs = {"fit": committed(fit_folder, "fit"), "cell": training(tmp_path / "cell", "c", {10: 4.0, 50: 3.0})}
    spec = ReportSpec(title="demo", recipe="name: demo", predict="demo")
    context = context_of("report demo", spec, inputs, tmp_path)
    task.run(context)
    staging = context.staging
    page = (staging / "report.html").read_text()
    assert "Learning curves" in page and "fit-identity" in page and "name: demo" in page
    record = staging / "record"
    assert (record / "files" / "report.html").read_text() == page
    names = {path.name for path in (staging / "figures").iterdir()}
    assert names == {path.name for path in (record / "figures").iterdir()} and len(names) == 11
    described = json.loads((record / "describe.json").read_text())
    assert described["kind"] == "sweep" and described["tags"] == {"sweep": "demo", "identified": "identified"}
    assert sound().health.verdict in (record / "note.md").read_text()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
