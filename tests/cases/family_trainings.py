"""Two contracts of a training of any family, for the tests of all families and of one family's own settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import training_data
from resume_cases import assert_identical, deterministic_rows, newest_state
from torch import nn
from training_cases import Interrupted, gradients_and_weights, interrupted_at

from reducible.models.families.registry import FAMILIES
from reducible.tasks.train import checkpoints
from reducible.tasks.train.folders import CHECKPOINTS, STATE
from reducible.tasks.train.loop import train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.step import chance
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record


def run(
    spec: TrainSpec, work: Path, stop: int = -1, attempt: str = "x", start: Path | None = None, **execution: Any
) -> TrainResult:
    """stop: the step before which the training breaks off; -1: none. start: the folder of an earlier stretch."""
    how = Execution(**{"checkpoint_every": 3, "log_every": 1, **execution})
    data = interrupted_at(training_data(spec), stop)
    return train(spec, how, data=data, start=start, work=work, record=Record(work / "record", attempt))


def assert_resumes(spec: TrainSpec, folder: Path, stop: int) -> None:
    """Broken off before a step and resumed equals never broken off (folder / "straight"), to the bit."""
    run(spec, folder / "straight")
    with pytest.raises(Interrupted):
        run(spec, folder / "broken", stop, "first")
    run(spec, folder / "broken", attempt="second")
    assert_identical(folder / "straight", folder / "broken")


def assert_a_branch_is_a_training_of_its_own(spec: TrainSpec, folder: Path) -> None:
    """A trunk of two segments and a branch equals one training to the bit, and its last row too."""

    def stretch(start: int, stop: int, cooldown: int = 0) -> TrainSpec:
        schedule = {"kind": "wsd" if cooldown else "constant", "warmup_steps": 2, "cooldown_steps": cooldown}
        return TrainSpec.model_validate(
            spec.model_dump() | {"start_step": start, "stop_step": stop, "horizon": 7, "schedule": schedule}
        )

    segments = (("first", stretch(0, 5)), ("second", stretch(5, 9)), ("branch", stretch(9, 12, cooldown=3)))
    start = None
    for name, part in segments:
        run(part, folder / name, start=start)
        shutil.copytree(checkpoints.complete(folder / name / CHECKPOINTS)[-1], folder / name / STATE)
        start = folder / name
    run(stretch(0, 12, cooldown=3), folder / "straight")
    branch, straight = newest_state(folder / "branch"), newest_state(folder / "straight")
    assert branch.keys() == straight.keys()
    for name in straight:
        assert torch.equal(branch[name], straight[name]), name
    assert deterministic_rows(folder / "branch")[-1] == deterministic_rows(folder / "straight")[-1]


def assert_a_step_is_the_sum_of_its_micro_batches(spec: TrainSpec, work: Path, more_than: int = 1) -> nn.Module:
    """Oracle: each micro-batch by hand, its chance seeded by its global number, added up and divided once.

    Returns the model that went by hand, with the sums of its gradients.
    """
    data = training_data(spec)
    seen = gradients_and_weights(spec, Execution(), data, work, steps=1)["gradient 0"]
    kind = FAMILIES[spec.family]
    torch.manual_seed(spec.seed)
    model = kind.build(kind.config(**spec.model)).train()
    if hasattr(model, "at_step"):
        model.at_step(0, spec.stop_step)
    micros, units = data.train.micro_batches(0), 0
    assert len(micros) > more_than
    for number, indices in enumerate(micros):
        arrays = data.train.fetch(indices)
        torch.manual_seed(chance(spec.seed, 0, number))
        loss = model({key: torch.from_numpy(array) for key, array in arrays.items()})
        assert loss.units.item() == data.train.units(arrays)
        units += loss.units.item()
        loss.nats.backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / units
        torch.testing.assert_close(seen[name], expected, rtol=1e-4, atol=1e-6)
    return model
