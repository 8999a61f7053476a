"""The fit task reads train artifacts, leaves out what did not end well, and leaves fit.json, runs.csv and a record."""

import json
from pathlib import Path

import pytest
from law_cases import QUICK, isoflop_design, table_of
from task_context import context_of

from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit_spec import Cell, Excluded, FitSpec
from reducible.tasks.fit.fit_task import run
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.task import Context


def cells_of(folder: Path, spoil: str | None = None) -> Context:
    """Twenty cells in a store, of which the third diverged; one more never finished."""
    table = table_of(*isoflop_design(4, 5), noise=0.002)
    inputs, cells = {}, []
    for i, row in table.iterrows():
        artifact = folder / f"artifact-{i}"
        artifact.mkdir(parents=True)
        result = {
            "status": "diverged" if i == 2 else "finished",
            "reason": "loss is not finite at step 9" if i == 2 else None,
            "units": row.D,
            "flops": row.C,
            "parameters": row.N,
            "parameters_without_embeddings": 0.9 * row.N,
            "validation_loss": None if i == 2 else row.loss,
            "learning_rate": 1e-3,
        }
        (artifact / "result.json").write_text(spoil if spoil and i == 1 else json.dumps(result))
        name = f"cell-{i:04}"
        inputs[name] = artifact
        cells.append(Cell(input=name, label=f"w{i}", budget=float(f"{row.C:.3g}"), seed=0))
    spec = FitSpec(
        options=QUICK, cells=tuple(cells), excluded=(Excluded(label="w99", reason="did not finish: out of memory"),)
    )
    return context_of("fit demo", spec, inputs, folder)


def test_fits_the_cells_and_names_the_excluded(tmp_path: Path) -> None:
    run(cells_of(tmp_path))
    fit = Fit.load(tmp_path / "staging/fit.json")
    assert [item.name for item in fit.used] == [f"w{i}" for i in range(20) if i != 2]
    assert {item.name: item.reason for item in fit.excluded} == {
        "w2": "diverged: loss is not finite at step 9",
        "w99": "unfinished: did not finish: out of memory",
    }
    assert fit.law is not None and fit.law.E.low < 1.8 < fit.law.E.high
    assert len(fit.frontier.points) == 4
    record = tmp_path / "staging/record"
    described = json.loads((record / "describe.json").read_text())
    assert described["kind"] == "fit" and described["tags"]["sweep"] == "demo"
    assert read_rows(record)[0]["metrics"]["law/E"] == fit.law.E.value
    assert "excluded w2" in (record / "note.md").read_text()
    assert (tmp_path / "staging/runs.csv").exists()


def test_a_result_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="artifact-1/result.json of w1 is not the result of a training"):
        run(cells_of(tmp_path, spoil="{}"))
