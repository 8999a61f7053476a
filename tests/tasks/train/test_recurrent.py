"""Truncated back-propagation in the train step: exact sums, resumed to the bit, two ranks as one; its diagnostic."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_families
from family_cases import family_spec, settings, training_data
from family_trainings import assert_resumes
from training_cases import gradients_and_weights, on_ranks

from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.gradient_flow import show_gradient_flow
from reducible.tasks.train.step import chance
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, read_rows

STRATEGIES = ("ddp", "fsdp")


def truncated() -> TrainSpec:
    """Sequences of 8 in pieces of 3, 3 and 2, dropout on, five micro-batches a step."""
    return family_spec("recurrent", model=settings("recurrent") | {"truncation": 3})


def test_a_step_is_the_sum_over_micro_batches_and_pieces_over_their_units(tmp_path: Path) -> None:
    spec = truncated()
    data = training_data(spec)
    seen = gradients_and_weights(spec, Execution(), data, tmp_path, steps=1)["gradient 0"]
    torch.manual_seed(spec.seed)
    model = Recurrent(RecurrentConfig(**spec.model)).train()
    units = 0
    for number, indices in enumerate(data.train.micro_batches(0)):
        batch = {key: torch.from_numpy(array) for key, array in data.train.fetch(indices).items()}
        torch.manual_seed(chance(spec.seed, 0, number))
        masks = model._masks(batch["inputs"].shape[0])
        states: list[Any] = [None] * model.config.depth
        nats = torch.zeros(())
        for inputs, targets in zip(batch["inputs"].T.split(3), batch["targets"].T.split(3), strict=True):
            h, states = model.advance(inputs, states, masks)
            states = [tuple(part.detach() for part in state) for state in states]
            logits, real = model.predict(h).flatten(0, 1), targets.flatten() >= 0
            nats = nats - logits.log_softmax(-1)[real].gather(1, targets.flatten()[real, None]).sum()
            units += int(real.sum())
        nats.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(seen[name], parameter.grad / units, rtol=1e-4, atol=1e-6)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    assert_resumes(truncated(), tmp_path, stop=8)


def test_checkpointing_inside_pieces_is_the_same_to_rounding(tmp_path: Path) -> None:
    spec = truncated()
    plain, again = (
        gradients_and_weights(spec, Execution(checkpointing=mode), training_data(spec), tmp_path / mode, steps=2)
        for mode in ("none", "sqrt-time")
    )
    for what, tensors in plain.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(again[what][name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full", "sqrt-time"])
def test_two_ranks_step_as_one_does(tmp_path: Path, checkpointing: str) -> None:
    on_ranks(__file__, 2, str(tmp_path), checkpointing)
    spec = truncated()
    expected = gradients_and_weights(spec, Execution(), training_data(spec), tmp_path, steps=2)
    for strategy in STRATEGIES:
        seen = torch.load(tmp_path / f"{strategy}.pt")
        for what, tensors in expected.items():
            for name, tensor in tensors.items():
                difference = (seen[what][name] - tensor).abs().max() / max(float(tensor.abs().max()), 1e-6)
                assert difference < (1e-3 if what == "weights" else 1e-4), (strategy, what, name, difference)


def test_the_gradient_through_time_becomes_a_picture_and_a_curve_over_lag(tmp_path: Path) -> None:
    spec = family_spec("recurrent")
    examples = training_data(spec).held_out.examples
    model, record = Recurrent(RecurrentConfig(**spec.model)), Record(tmp_path, "x")
    numbers = show_gradient_flow(model, examples, spec.model_dump(), record)
    assert set(numbers) == {"gradient_factor_hidden_1", "gradient_factor_cell_1"}
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 6]
    assert all(row["metrics"]["gradient_flow/hidden_1"] > 0 for row in rows)
    assert (record.figures / "gradient_flow.png").stat().st_size > 10_000
    stateless = toy_families.ToyText(toy_families.TextConfig(11))
    with pytest.raises(UserError, match="evaluate.gradient_flow: is for models that carry a state .*; this is a toy"):
        show_gradient_flow(stateless, examples, {"family": "toy"}, record)


def on_this_rank(out: Path, checkpointing: str) -> None:
    """What each of two gloo processes does for the test above."""
    torch.distributed.init_process_group("gloo")
    for strategy in STRATEGIES:
        spec = truncated()
        execution = Execution(workers=2, strategy=strategy, checkpointing=checkpointing)  # type: ignore[arg-type]
        seen = gradients_and_weights(spec, execution, training_data(spec), out / strategy, steps=2)
        if torch.distributed.get_rank() == 0:
            torch.save(seen, out / f"{strategy}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    on_this_rank(Path(sys.argv[1]), sys.argv[2])
