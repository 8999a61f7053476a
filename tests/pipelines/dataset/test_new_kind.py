"""A kind of data is a row in each layer: with these alone, grids go through every command (tests/cases/toy_kind)."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_families
import toy_kind
import yaml
from in_process import called, said, without_ray
from ray_head import head
from toy_kind.family import GRID_FAMILY

from reducible.models.families.registry import FAMILIES, register
from reducible.pipelines.cluster.upload import PACKAGE
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.errors import UserError

SIDE, SYMBOLS, NOISE = 4, 3, 0.1
CAPTIONS = ("bars", "steps")


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, toy_kind.registered():
        patch.setattr("reducible.models.families.registry.FAMILIES", dict(FAMILIES))
        register(GRID_FAMILY)
        yield


def pattern(caption: str) -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE))
    return (columns if caption == "bars" else rows + columns) % SYMBOLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and grids whose pixels are the caption's pattern except for some that are drawn from all symbols."""
    folder, random = tmp_path_factory.mktemp("grids"), np.random.default_rng(0)
    lines = []
    for number in range(1500):
        caption = CAPTIONS[number % 2]
        drawn = random.integers(SYMBOLS, size=(SIDE, SIDE))
        pixels = np.where(random.random((SIDE, SIDE)) < NOISE, drawn, pattern(caption))
        lines.append(f"{caption}\t{''.join(map(str, pixels.ravel()))}\n")
    (folder / "grids.txt").write_text("".join(lines))
    recipe = {
        "data": {"kind": "grids", "source": "grids.txt"},
        "model": {"family": "toy-grids", "width": 8},
        "train": {"tokens": 200_000, "batch": 512, "optimizer": {"learning_rate": 3e-2, "weight_decay": 0}},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; tasks run in this process."""
    without_ray(monkeypatch)
    monkeypatch.chdir(folder)
    return folder


def test_grids_are_planned_trained_evaluated_and_sampled(here: Path) -> None:
    planned = said("plan", "toy.yaml", "--memory-report", "--memory", "80GB")
    assert "x 16, fp32" in planned and "inference" in planned
    said("run", "toy.yaml")
    assert said("plan", "toy.yaml").count("  done ") == 4
    headline = said("evaluate", "toy").splitlines()[-1]
    assert headline.endswith("nats per pixel on 4,800 pixels")
    likely, other = 1 - NOISE + NOISE / SYMBOLS, NOISE / SYMBOLS
    entropy = -likely * math.log(likely) - (SYMBOLS - 1) * other * math.log(other)
    assert float(headline.split()[1]) == pytest.approx(entropy, rel=0.1)
    for caption in CAPTIONS:
        expected = "\n".join("".join(map(str, row)) for row in pattern(caption))
        assert said("sample", "toy", "--prompt", caption).strip() == expected


def test_grids_are_fine_tuned(here: Path) -> None:
    said("run", "toy.yaml", "name=base", "train.tokens=20k")
    tuned = said("finetune", "base", "finetune.rank=2", "train.tokens=20k", "data.source=grids.txt", "data.kind=grids")
    assert "made    train base-lora" in tuned and "adapter " in tuned
    change = re.search(r"change  from ([\d.]+) \(the base\) to ([\d.]+) nats per pixel", tuned)
    assert change and float(change[2]) < float(change[1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sequence=9", "data.sequence: 9 must be the pixels of every grid: [16]"),
        ("data.source=builtin:stdlib", "data.source: builtin:stdlib holds no grids; no built-in corpus does"),
        ("model.family=transformer", "model.family: transformer reads text, which data.kind grids does not give"),
        ("model.symbols=4", "model.symbols: unknown key"),
        ("evaluate.beam=4", "evaluate.beam: unknown key"),
        ("data.columns=[a]", "data.columns: unknown key"),
    ],
)
def test_a_mistake_is_one_line(here: Path, override: str, message: str) -> None:
    result = called("plan", "toy.yaml", override)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_a_recipe_finds_its_file_from_everywhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(folder / "toy.yaml").data.source == str(folder / "grids.txt")  # type: ignore[attr-defined]


def test_without_its_rows_it_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reducible.pipelines.dataset import kinds

    monkeypatch.delitem(kinds.KINDS, "grids")
    with pytest.raises(UserError, match="data.kind: 'grids' is not allowed; it must be text, pairs, series"):
        load_recipe(folder / "toy.yaml")


LINES = {
    "models/batches.py": "from reducible.toy_kind.batch import GRIDS\n\nBATCHES[GRIDS.name] = GRIDS\n",
    "models/families/registry.py": "from reducible.toy_kind.family import GRID_FAMILY\n\nregister(GRID_FAMILY)\n",
    "tasks/dataset/kind.py": 'KINDS["grids"] = "reducible.toy_kind.kind:GRIDS"\n',
    "pipelines/dataset/kinds.py": 'KINDS["grids"] = "reducible.toy_kind.section:GridData"\n',
}
"""What the change adds to files of the package."""


def changed_package(folder: Path) -> None:
    """A copy of the package with its rows and its lines: where a kind of data is added for good."""
    package = folder / "reducible"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "toy_kind").mkdir()
    for file in [*Path(toy_kind.__file__).parent.glob("[!_]*.py"), Path(toy_families.__file__)]:
        moved = re.sub(r"\btoy_(kind|families)\b", r"reducible.toy_kind.toy_\1", file.read_text())
        (package / "toy_kind" / file.name).write_text(moved.replace("toy_kind.toy_kind", "toy_kind"))
    for name, lines in LINES.items():
        with (package / name).open("a") as file:
            file.write(f"\n{lines}")


@pytest.mark.slow
def test_a_cluster_has_the_kind_with_the_package(folder: Path, tmp_path: Path) -> None:
    """A kind has no address as a family has: its files and lines are in the package, which travels to the workers."""
    changed_package(tmp_path / "changed")
    with head() as (dashboard, gcs, token):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "changed"), "RAY_AUTH_TOKEN_PATH": str(token)}

        def command(*words: str, **settings: str) -> str:
            line = [sys.executable, "-m", "reducible.pipelines.cli", *words]
            done = subprocess.run(line, cwd=folder, env={**environment, **settings}, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        at, where = ("--address", dashboard), ("--root", str(tmp_path / "root"))
        job = command("submit", "run", "toy.yaml", "name=base", "train.tokens=20k", *where, *at)
        identity = re.search(r"Submitted (\S+)\.", job)
        assert identity and "made    train base" in command("logs", identity[1], "--follow", *at)
        there = {"RAY_ADDRESS": gcs}
        data = ("data.kind=grids", "data.source=grids.txt")
        tuned = command("finetune", "base", "finetune.rank=2", "train.tokens=20k", *data, *where, **there)
        assert "made    train base-lora" in tuned and "nats per pixel" in tuned
        sweep = "sweep={tokens: [5k, 10k], widths: [2, 4, 8]}"
        swept = command("sweep", "toy.yaml", "name=sizes", sweep, *where, **there)
        assert "6 runs, 0 excluded" in swept and "report.html" in swept
