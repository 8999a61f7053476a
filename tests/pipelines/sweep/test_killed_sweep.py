"""A sweep goes on: after a cell failed, after a worker was killed, after the command itself was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from reducible.pipelines.cli import main
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order

RECIPE = """
data: {generated: {documents: 200, length: 200, symbols: 8}, tokenizer: {kind: bytes}, sequence: 32}
train: {batch: 256, validation: {units: 1k}}
compute: {checkpoint_every: 20}
sweep: {tokens: [20k, 40k, 80k], widths: [8, 12, 16], trunk: true}
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def swept(recipe: Path, root: Path) -> Result:
    return CliRunner().invoke(main, ["sweep", str(recipe), "--root", str(root)])


def losses(root: Path) -> dict[str, float]:
    """The validation loss of every training, by identity."""
    found = (root / "artifacts" / "train").glob("*/result.json")
    return {path.parent.name: json.loads(path.read_text())["validation_loss"] for path in found}


def fit_of(root: Path) -> Fit:
    return Fit.load(next((root / "artifacts" / "fit").glob("*/fit.json")))


def workers(driver: psutil.Process) -> Iterator[psutil.Process]:
    """The processes that train a segment or a cell now."""
    for child in driver.children(recursive=True):
        try:
            if child.cmdline()[0].startswith(("ray::trunk", "ray::D=")):
                yield child
        except (psutil.NoSuchProcess, IndexError):
            pass


def test_killed_and_given_again_is_the_sweep_that_was_never_killed(recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "reducible.pipelines.cli", "sweep", str(recipe), "--root", str(root)]
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    driver = psutil.Process(process.pid)
    while process.poll() is None and not (victim := next(workers(driver), None)):
        time.sleep(0.05)
    assert process.poll() is None, said.read_text()
    victim.send_signal(signal.SIGKILL)
    while process.poll() is None and (len(losses(root)) < 4 or "again" not in said.read_text()):
        time.sleep(0.05)
    assert process.poll() is None, said.read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (root / "artifacts" / "train").glob("*/manifest.json")}

    again = swept(recipe, root)
    assert again.exit_code == 0, again.output
    assert f"dataset, {len(before)} train" in again.output
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    straight = swept(recipe, tmp_path / "straight")
    assert straight.exit_code == 0, straight.output
    assert losses(root) == losses(tmp_path / "straight") and len(losses(root)) == 18
    assert [run.loss for run in fit_of(root).used] == [run.loss for run in fit_of(tmp_path / "straight").used]


def test_a_cell_that_fails_is_tried_again_then_left_out_by_name(recipe: Path, tmp_path: Path) -> None:
    """A file stands where the cell's work folder would be: no mistake in the recipe, and not cured by waiting."""
    root = tmp_path / "root"
    cells = sweep_tasks(load_recipe(recipe), Store(root)).cells
    broken = cells[1].train
    assert broken not in in_order([cell.train for cell in cells if cell.train is not broken])
    folder = Store(root).work("train", broken.identity)
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    result = swept(recipe, root)
    assert result.exit_code == 1
    assert f"again   {broken.title}" in result.output and f"FAILED  {broken.title}" in result.output
    fit = fit_of(root)
    assert [run.name for run in fit.excluded] == [broken.title]
    assert "(tried 2 times)" in str(fit.excluded[0].reason)
    assert len(fit.used) == len(cells) - 1
    folder.unlink()
    mended = swept(recipe, root)
    assert mended.exit_code == 0 and "dataset, 17 train" in mended.output, mended.output
