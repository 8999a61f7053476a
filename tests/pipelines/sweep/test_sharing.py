"""How much of a GPU a cell of a sweep holds."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep import sharing
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.tasks.workflow.store import Store


def shares(root: Path, widths: list[int], compute: dict[str, Any], batch: int = 512, **sweep: Any) -> list[float]:
    data = {"generated": {"documents": 50}, "tokenizer": {"kind": "bytes"}, "sequence": 64}
    design = {"tokens": ["1M", "2M"], "widths": widths, **sweep}
    content = {"name": "s", "data": data, "train": {"batch": batch}, "compute": compute, "sweep": design}
    cells = sweep_tasks(Recipe.model_validate(content), Store(root)).cells
    return [cell.train.resources.share for cell in cells[: len(widths)]]


def test_small_cells_share_a_gpu_and_large_ones_do_not(tmp_path: Path) -> None:
    assert shares(tmp_path, [16, 64], {"gpus_per_worker": 1}) == [1 / 8, 1 / 8]
    small, middle, large = shares(tmp_path, [64, 192, 1024], {"gpus_per_worker": 1}, batch=16_384)
    assert 1 / 8 == small < middle < large == 1


def test_what_the_memory_holds_limits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SMALLEST_GPU", 2.5 * sharing.CONTEXT)
    assert shares(tmp_path, [16], {"gpus_per_worker": 1}) == [1 / 2]


@pytest.mark.parametrize(
    "compute", [{}, {"gpus_per_worker": 0.5}, {"gpus_per_worker": 2}, {"gpus_per_worker": 1, "workers": 2}]
)
def test_only_one_worker_with_a_gpu_shares_it(tmp_path: Path, compute: dict[str, Any]) -> None:
    assert shares(tmp_path, [16], compute, cells_per_gpu="auto") == [1]


def test_the_recipe_can_say_it(tmp_path: Path) -> None:
    assert shares(tmp_path, [16, 64], {"gpus_per_worker": 1}, cells_per_gpu=3) == [1 / 3, 1 / 3]
    assert shares(tmp_path, [16], {"gpus_per_worker": 1}, cells_per_gpu=1) == [1]
    with pytest.raises(ValidationError, match="cells_per_gpu"):
        shares(tmp_path, [16], {}, cells_per_gpu=0)


def test_sharing_and_retries_are_no_identity(tmp_path: Path) -> None:
    def identities(**compute: Any) -> list[str]:
        data = {"generated": {"documents": 50}, "tokenizer": {"kind": "bytes"}, "sequence": 64}
        content = {"data": data, "compute": compute, "sweep": {"budgets": [1e10], "widths": [16]}}
        return [cell.train.identity for cell in sweep_tasks(Recipe.model_validate(content), Store(tmp_path)).cells]

    assert identities() == identities(gpus_per_worker=1, retries=5) == identities(cpus_per_worker=0.5)
