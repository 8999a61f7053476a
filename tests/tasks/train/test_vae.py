"""The sequence VAE in the train loop with all of its chance and all of its schedules on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import family_spec, settings, training_data
from family_trainings import assert_a_step_is_the_sum_of_its_micro_batches, assert_resumes, run
from resume_cases import newest_state

from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.loop import Training
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, read_rows

REMEDIES: dict[str, Any] = {
    "word_dropout": 0.3,
    "samples": 2,
    "kl_schedule": "cyclical",
    "kl_cycles": 2,
    "free_bits": 0.05,
    "aggressive": 2,
}


def vae_spec(**changes: Any) -> TrainSpec:
    model = settings("vae") | REMEDIES | changes
    return family_spec("vae", model=model, validation={"every": 2, "examples": 7}, stop_step=24)


def column(work: Path, name: str) -> list[float]:
    return [row["metrics"][name] for row in read_rows(work / "record") if name in row["metrics"]]


@pytest.mark.parametrize("stop", [4, 11])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    # KL so dear that mutual information soon stops rising.
    assert_resumes(vae_spec(kl_weight=10.0), tmp_path, stop)
    # Neither the aggressive phase nor what follows is empty, so both were interrupted and resumed.
    assert set(column(tmp_path / "straight", "train/aggressive")) == {0.0, 1.0}
    assert newest_state(tmp_path / "straight")["model.schedule.memory"][1] == 3


def test_a_step_is_the_sum_of_its_micro_batches_over_their_units(tmp_path: Path) -> None:
    model = assert_a_step_is_the_sum_of_its_micro_batches(vae_spec(), tmp_path, more_than=3)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_step_of_the_aggressive_phase_moves_one_side_only(tmp_path: Path) -> None:
    training = Training(
        spec := vae_spec(), Execution(), training_data(spec), None, tmp_path, Record(tmp_path / "record", "x"), None
    )
    for step, moves in enumerate(["encoder", "encoder", "decoder"] * 2):
        before = {name: parameter.clone() for name, parameter in training.model.named_parameters()}
        training.step(step)
        for name, parameter in training.model.named_parameters():
            belongs = "encoder" if name.startswith("encoder.") else "decoder"
            assert torch.equal(parameter, before[name]) == (belongs != moves), name
    training.checkpoints.close()


def test_what_mlflow_shows_of_a_training(tmp_path: Path) -> None:
    """The weight of KL, and at every validation ELBO, KL, reconstruction and mutual information per target unit."""
    spec = vae_spec(aggressive=0)
    run(spec, tmp_path)
    config = FAMILIES["vae"].config(**spec.model)
    expected = [config.kl_weight_at(step, spec.stop_step) for step in range(spec.stop_step)]
    # A row is a step here: its mean is that step's weight.
    assert column(tmp_path, "train/kl_weight") == pytest.approx(expected, rel=1e-6)
    for loss, kl, reconstruction in zip(
        *(column(tmp_path, f"val/{name}") for name in ("loss", "kl", "reconstruction")), strict=True
    ):
        assert loss == pytest.approx(kl + reconstruction, rel=1e-6)
    assert len(column(tmp_path, "val/mutual_information")) == spec.stop_step // 2
