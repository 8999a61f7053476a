"""Contracts 1 and 2 on two gloo processes: the same training whatever the world size, under DDP and FSDP2."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_cases import (
    CASES,
    FIRST_SCALE,
    Interrupted,
    examples_of,
    gradients_and_weights,
    interrupted_at,
    on_ranks,
    ragged_examples,
    small_spec,
)

from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.tasks.train import loss_scale
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loop import train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record, read_rows

ALONE = Execution(checkpoint_every=3, log_every=1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything two ranks have to do for this file, done by one launch."""
    out = tmp_path_factory.mktemp("ranks")
    spec = small_spec()
    with pytest.raises(Interrupted):
        run(out / "chain", interrupted_at(ragged_examples(spec), 3, out / "order-alone.txt"), "alone")
    on_ranks("train_ranks.py", 2, str(out))
    return out


def run(work: Path, examples: object, attempt: str) -> TrainResult:
    record = Record(work / "record", attempt)
    return train(small_spec(), ALONE, data=examples, start=None, work=work, record=record)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process, never interrupted."""
    work = tmp_path_factory.mktemp("straight")
    run(work, interrupted_at(ragged_examples(small_spec()), -1, work / "order.txt"), "straight")
    return work


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_one_rank_one_batch_equals_two_ranks_of_uneven_micro_batches(
    out: Path, tmp_path: Path, strategy: str, case: str
) -> None:
    # Five micro-batches on two ranks: three rounds, the last with nothing for rank 1. The oracle does one backward.
    whole = small_spec(micro_batch=9)
    spec = small_spec(micro_batch=2)
    examples = examples_of(case, spec)
    together = [sum((list(m) for m in examples.train.micro_batches(step)), []) for step in range(4)]
    expected = gradients_and_weights(whole, Execution(), replace(examples, train=Joined(examples, together)), tmp_path)
    seen = torch.load(out / f"{strategy}-{case}.pt")
    assert seen.keys() == expected.keys()
    for what, tensors in expected.items():
        # fp32 sums in another order, against the largest entry; averaging too early shows in the first digit.
        tolerance = 1e-4 if what == "weights" else 1e-5
        for name, tensor in tensors.items():
            difference = (seen[what][name] - tensor).abs().max() / tensor.abs().max()
            assert difference < tolerance, (what, name, difference)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_gradient_is_that_of_the_sum_over_the_count(out: Path, strategy: str) -> None:
    """Oracle: the definition in float64, all examples of the step at once."""
    spec = small_spec(micro_batch=2)
    examples = examples_of("silent", spec)
    torch.manual_seed(spec.seed)
    model = Transformer(TransformerConfig(**spec.model)).double()
    batch = examples.train.fetch(np.concatenate(examples.train.micro_batches(0)))
    inputs, targets = torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["targets"])
    logs = model.logits(inputs).log_softmax(-1)
    counted = targets >= 0
    (-logs[counted].gather(1, targets[counted][:, None]).sum() / counted.sum()).backward()
    seen = torch.load(out / f"{strategy}-silent.pt")["gradient 0"]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        difference = (seen[name] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert difference < 1e-5, (name, difference)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_skip_the_same_steps_in_fp16_and_train_as_one(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """FSDP2 keeps the residual stream in fp16 too: it agrees with one process to fp16, DDP to fp32's rounding."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    monkeypatch.setattr(loss_scale, "FIRST", FIRST_SCALE)
    spec = small_spec(precision="fp16")
    record = Record(tmp_path / "record", "x")
    train(spec, Execution(log_every=1), data=ragged_examples(spec), start=None, work=tmp_path, record=record)
    ours, alone = (
        [row["metrics"] for row in read_rows(work / "record")] for work in (out / f"fp16-{strategy}", tmp_path)
    )
    skipped, expected = ([row["train/overflowed_steps"] for row in rows] for rows in (ours, alone))
    assert skipped == expected and 0 < expected[-1] < 10
    for one, other in zip(ours, alone, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4 if strategy == "ddp" else 0.01)
        assert one["train/gradient_norm"] == pytest.approx(other["train/gradient_norm"], rel=0.1)


class Joined:
    """All examples of a step as its one micro-batch."""

    def __init__(self, examples: object, steps: list[list[int]]) -> None:
        self.steps = [np.array(step) for step in steps]
        self.fetch, self.units = examples.train.fetch, examples.train.units  # type: ignore[attr-defined]

    def micro_batches(self, step: int) -> list:
        return [self.steps[step]]


def test_resumed_at_other_world_sizes_it_sees_the_same_examples(out: Path, straight: Path) -> None:
    """One process, then DDP on two, then FSDP2 on two, then one again."""
    result = run(out / "chain", interrupted_at(ragged_examples(small_spec()), -1, out / "order-last.txt"), "last")
    orders = ["order-alone.txt", "order-ddp-0.txt", "order-ddp-1.txt", "order-fsdp-0.txt", "order-fsdp-1.txt"]
    seen = {line for name in [*orders, "order-last.txt"] for line in (out / name).read_text().splitlines()}
    assert seen == set((straight / "order.txt").read_text().splitlines())
    assert result.status == "finished"

    ours, theirs = read_rows(out / "chain" / "record"), read_rows(straight / "record")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(1, 13))
    for one, other in zip(ours, theirs, strict=True):
        assert one["metrics"]["train/units"] == other["metrics"]["train/units"]
        assert one["metrics"]["train/loss"] == pytest.approx(other["metrics"]["train/loss"], rel=1e-5)
        if "val/loss" in other["metrics"]:
            assert one["metrics"]["val/loss"] == pytest.approx(other["metrics"]["val/loss"], rel=1e-5)


@pytest.mark.parametrize("work", ["chain", "whole"])
def test_weights_agree_to_rounding_after_any_chain_of_world_sizes(out: Path, straight: Path, work: str) -> None:
    expected = load_file(straight / MODEL / "model.safetensors")
    weights = load_file(out / work / MODEL / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-4)
