"""Seq2seq in the train loop in the forms that its defaults leave out: input feeding, hard attention, several layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import family_spec, settings, training_data
from test_train_resume import assert_identical
from training_cases import Interrupted, gradients_and_weights, interrupted_at

from models.families import FAMILIES
from tasks.record import Record
from tasks.train.loop import chance, train
from tasks.train.spec import Execution, TrainSpec

FORMS: dict[str, dict[str, Any]] = {
    "feeding": {"attention": "bahdanau", "depth": 2, "label_smoothing": 0.1},
    "hard": {"attention": "luong", "hard": True, "depth": 2},
    "none": {"attention": "none", "bidirectional": False, "tied": False},
}


def spec_of(form: str) -> TrainSpec:
    return family_spec("seq2seq", model=settings("seq2seq") | FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_and_resumed_equals_uninterrupted(form: str, tmp_path: Path) -> None:
    spec = spec_of(form)

    def run(work: Path, stop: int = -1, attempt: str = "x") -> None:
        record, data = Record(work / "record", attempt), interrupted_at(training_data(spec), stop)
        train(spec, Execution(checkpoint_every=3, log_every=1), data=data, start=None, work=work, record=record)

    run(tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", stop=8, attempt="first")
    run(tmp_path / "broken", attempt="second")
    assert_identical(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_the_sum_of_its_micro_batches_over_their_units(form: str, tmp_path: Path) -> None:
    """Oracle: each micro-batch by hand, its chance seeded by its global number, added up and divided once."""
    spec = spec_of(form)
    data = training_data(spec)
    seen = gradients_and_weights(spec, Execution(), data, tmp_path, steps=1)["gradient 0"]
    torch.manual_seed(spec.seed)
    model = FAMILIES["seq2seq"].build(FAMILIES["seq2seq"].config(**spec.model)).train()
    micros, units = data.train.micro_batches(0), 0
    assert len(micros) > 1
    for number, indices in enumerate(micros):
        batch = {key: torch.from_numpy(array) for key, array in data.train.fetch(indices).items()}
        torch.manual_seed(chance(spec.seed, 0, number))
        loss = model(batch)
        loss.nats.backward()
        units += loss.units.item()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(seen[name], parameter.grad / units, rtol=1e-4, atol=1e-6)
