"""Seq2seq in the train loop in the forms that its defaults leave out: input feeding, hard attention, several layers."""

from pathlib import Path
from typing import Any

import pytest
from family_cases import family_spec, settings
from family_trainings import assert_a_step_is_the_sum_of_its_micro_batches, assert_resumes

from reducible.tasks.train.train_spec import TrainSpec

FORMS: dict[str, dict[str, Any]] = {
    "feeding": {"attention": "bahdanau", "depth": 2, "label_smoothing": 0.1},
    "hard": {"attention": "luong", "hard": True, "depth": 2},
    "none": {"attention": "none", "bidirectional": False, "tied": False},
}


def spec_of(form: str) -> TrainSpec:
    return family_spec("seq2seq", model=settings("seq2seq") | FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_and_resumed_equals_uninterrupted(form: str, tmp_path: Path) -> None:
    assert_resumes(spec_of(form), tmp_path, stop=8)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_the_sum_of_its_micro_batches_over_their_units(form: str, tmp_path: Path) -> None:
    model = assert_a_step_is_the_sum_of_its_micro_batches(spec_of(form), tmp_path)
    assert all(parameter.grad is not None for parameter in model.parameters())
