"""The deep state-space model in the train loop, with a chain of latents, an annealed divergence and dropout."""

from pathlib import Path
from typing import Any

import pytest
from family_cases import family_spec, settings
from family_trainings import assert_a_step_is_the_sum_of_its_micro_batches, assert_resumes, run

from reducible.tasks.errors import UserError
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.record import read_rows

KEYS: dict[str, Any] = {"posterior": "structured", "transition": "gated", "kl_start": 0.1, "kl_rise": 0.8}


def ssm_spec() -> TrainSpec:
    return family_spec("ssm", model=settings("ssm") | KEYS)


def test_broken_off_while_the_divergence_is_annealed_and_resumed_equals_never_broken_off(tmp_path: Path) -> None:
    assert_resumes(ssm_spec(), tmp_path, stop=5)


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
    model = assert_a_step_is_the_sum_of_its_micro_batches(ssm_spec(), tmp_path, more_than=3)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_data_that_the_emission_cannot_say_are_one_line(tmp_path: Path) -> None:
    spec = family_spec("ssm", model=settings("ssm") | {"emission": "bernoulli"})
    with pytest.raises(
        UserError, match=r"model.emission: bernoulli takes whole numbers from 0 to 1; the data hold \S+;"
    ):
        run(spec, tmp_path)
