"""The deep state-space model in the train loop, with a chain of latents, an annealed divergence and dropout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import family_spec, settings, training_data
from test_train_resume import assert_identical
from training_cases import Interrupted, gradients_and_weights, interrupted_at

from models.families import FAMILIES
from tasks.record import Record, read_rows
from tasks.train.loop import chance, train
from tasks.train.spec import Execution, TrainSpec

KEYS: dict[str, Any] = {"posterior": "structured", "transition": "gated", "kl_start": 0.1, "kl_rise": 0.8}


def ssm_spec() -> TrainSpec:
    return family_spec("ssm", model=settings("ssm") | KEYS)


def run(spec: TrainSpec, work: Path, stop: int = -1, attempt: str = "x") -> None:
    data = interrupted_at(training_data(spec), stop)
    execution = Execution(checkpoint_every=3, log_every=1)
    train(spec, execution, data=data, start=None, work=work, record=Record(work / "record", attempt))


def test_broken_off_while_the_divergence_is_annealed_and_resumed_equals_never_broken_off(tmp_path: Path) -> None:
    spec = ssm_spec()
    run(spec, tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(spec, tmp_path / "broken", stop=5, attempt="first")
    run(spec, tmp_path / "broken", attempt="second")
    assert_identical(tmp_path / "straight", tmp_path / "broken")


def test_the_logged_loss_is_weighted_in_training_and_whole_in_validation(tmp_path: Path) -> None:
    """Means over the step's units: reconstruction + weight x divergence, the weight of that very step."""
    spec = ssm_spec()
    run(spec, tmp_path)
    for row in read_rows(tmp_path / "record"):
        metrics, weight = row["metrics"], min(1.0, 0.1 + 0.9 * (row["step"] - 1) / (0.8 * spec.stop_step))
        expected = metrics["train/reconstruction"] + weight * metrics["train/kl"]
        assert metrics["train/loss"] == pytest.approx(expected, rel=1e-5)
        if "val/loss" in metrics:
            assert metrics["val/loss"] == pytest.approx(metrics["val/reconstruction"] + metrics["val/kl"], rel=1e-5)


def test_a_step_is_the_sum_of_its_micro_batches_over_their_units(tmp_path: Path) -> None:
    """Oracle: each micro-batch by hand, its chance seeded by its global number, added up and divided once."""
    spec = ssm_spec()
    data = training_data(spec)
    seen = gradients_and_weights(spec, Execution(), data, tmp_path, steps=1)["gradient 0"]
    torch.manual_seed(spec.seed)
    model = FAMILIES["ssm"].build(FAMILIES["ssm"].config(**spec.model)).train()
    model.at_step(0, spec.stop_step)
    micros, units = data.train.micro_batches(0), 0
    assert len(micros) > 3
    for number, indices in enumerate(micros):
        arrays = data.train.fetch(indices)
        torch.manual_seed(chance(spec.seed, 0, number))
        model({key: torch.from_numpy(array) for key, array in arrays.items()}).nats.backward()
        units += data.train.units(arrays)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad / units, rtol=1e-4, atol=1e-6)
