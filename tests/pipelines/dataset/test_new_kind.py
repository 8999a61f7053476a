"""A kind of data is a row in each layer: with these alone, grids go through every command (tests/cases/toy_kind)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_kind
import yaml
from click.testing import CliRunner, Result
from toy_kind.family import GRID_FAMILY

from reducible.models.families.registry import FAMILIES, register
from reducible.pipelines.cli import main
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.execute import Outcome, _payload, run_here
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

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
    """The current folder; tasks run in this process, one after another."""

    def in_this_process(
        waiting: Sequence[Task], store: Store, outcomes: dict[str, Outcome], observers: Sequence[Any]
    ) -> None:
        for observer in observers:
            observer.submitted(waiting)
        for task in waiting:
            outcomes[task.identity] = Outcome(task, "made", run_here(_payload(task), store))
            for observer in observers:
                observer.finished(outcomes[task.identity])

    monkeypatch.setattr("reducible.tasks.workflow.execute._run_on_ray", in_this_process)
    monkeypatch.setattr("reducible.pipelines.engine.session", nullcontext)
    monkeypatch.chdir(folder)
    return folder


def called(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(*arguments: object) -> str:
    result = called(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


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
