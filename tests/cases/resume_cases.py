"""What is compared between a training that was killed and one that was not."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from reducible.tasks.train import checkpoints
from reducible.tasks.train.folders import CHECKPOINTS
from reducible.tasks.workflow.record import read_rows


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    reader = dcp.FileSystemReader(folder)
    held = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in held.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def newest_state(work: Path) -> dict[str, torch.Tensor]:
    return final_state(checkpoints.complete(work / CHECKPOINTS)[-1])


def deterministic_rows(work: Path) -> list[dict[str, Any]]:
    """The rows without what a clock or the operating system says."""
    return [
        {"step": row["step"]}
        | {key: v for key, v in row["metrics"].items() if not key.startswith(("speed/", "memory/"))}
        for row in read_rows(work / "record")
    ]


def assert_identical(one: Path, other: Path) -> None:
    first, second = newest_state(one), newest_state(other)
    assert first.keys() == second.keys()
    assert any(name.startswith("optimizer.second.") for name in first)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert deterministic_rows(one) == deterministic_rows(other)
