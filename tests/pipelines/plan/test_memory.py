"""What plan says of a step is the step that training would take: who gets what, and what is advised."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from reducible.data.batches import Batches
from reducible.pipelines.cli import main
from reducible.pipelines.plan.memory import Asked, setting_of
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.run import run_tasks
from reducible.tasks.train.parallel import World
from reducible.tasks.workflow.store import Store

RECIPE = """
data: {generated: {documents: 200, length: 200, symbols: 8}, tokenizer: {kind: bytes}, sequence: 32}
model: {width: 32, depth: 2, heads: 2}
train: {tokens: 200k}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def spec_of(path: Path, *overrides: str) -> tuple[Any, Any]:
    recipe = load_recipe(path, overrides)
    return recipe, run_tasks(recipe, Store(path.parent / "root")).train.spec


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("batch", [256, 4096, 19200])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_ranks_get_what_training_deals_to_them(recipe: Path, workers: int, batch: int, micro_batch: int | None) -> None:
    overrides = [f"compute.workers={workers}", f"train.batch={batch}"]
    overrides += [f"train.micro_batch={micro_batch}"] if micro_batch else []
    loaded, spec = spec_of(recipe, *overrides)
    setting, examples = setting_of(loaded, spec, Asked())
    data = type("Examples", (), {"sequence": spec.sequence, "fingerprint": "x", "__len__": lambda self: 10**6})()
    micros = Batches(data, spec.batch, spec.micro_batch, 0).micro_batches(0)
    assert sum(map(len, micros)) == examples
    share: Any = World.share
    first = share(SimpleNamespace(rank=0, size=workers), micros)
    assert setting.micro_batches == len(first)
    assert setting.micro_batch == max(len(indices) for _, indices, _ in first)


def planned(recipe: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["plan", str(recipe), "--root", str(recipe.parent / "root"), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def test_workers_without_work_are_named(recipe: Path) -> None:
    idle = "3 of 4 workers have nothing to do: a step is 1 micro-batch of 8 sequences; train.micro_batch=2 has work"
    assert idle in planned(recipe, "train.batch=256", "compute.workers=4")
    assert "nothing to do" not in planned(recipe, "train.batch=256", "compute.workers=4", "train.micro_batch=2")
    assert "a step is 2 sequences; a larger train.batch" in planned(recipe, "train.batch=64", "compute.workers=4")


def test_more_devices_take_no_more_flops(recipe: Path) -> None:
    def flops(*options: str) -> str:
        lines = planned(recipe, "train.batch=256", "--memory-report", *options).splitlines()
        return next(line for line in lines if line.strip().startswith("FLOPs"))

    assert flops() == flops("--gpus", "4") == flops("--gpus", "1000000")


def test_methods_that_need_a_base_stand_apart_where_nothing_is_adapted(recipe: Path) -> None:
    said = planned(recipe, "train.batch=1024", "model.width=64", "model.depth=1", "--memory", "2MB")
    before, apart = said.split("with a base that is trained already")
    assert "micro_batch 2" in before and "method " not in before
    assert "method lora" in apart


@pytest.mark.parametrize("memory", ["1.2.3GB", ".GB", "80", "-1GB", "0GB", "GB", "1kiB"])
def test_a_size_that_is_none_is_one_line_before_anything_else(recipe: Path, memory: str) -> None:
    said = f"reducible: --memory: {memory!r} must be a size such as 80GB or 24GiB\n"
    assert planned(recipe, f"--memory={memory}") == said


def test_lengths_that_cannot_be_rehearsed_are_one_line(recipe: Path) -> None:
    assert "target units are more than the 4194304 that are rehearsed" in planned(recipe, "--sequence", "100000000")
