"""The step in one process: schedule, optimizer, chance, guards, validation, and that no step waits for the device."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from step_cases import PoisonAt, poisoned, run, training
from training_cases import ragged_examples, small_spec

from reducible.data.batches import fixed
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import CHECKPOINTS, MODEL, checkpoint_name
from reducible.tasks.train.guards import FEWEST, SpikeGuard
from reducible.tasks.train.optimizers.adamw import AdamW, AdamWSpec
from reducible.tasks.train.resume import state
from reducible.tasks.train.schedule import rate_at
from reducible.tasks.train.step import Step, chance
from reducible.tasks.train.train_spec import ScheduleSpec
from reducible.tasks.workflow.record import read_rows

# Schedule


def test_wsd_warms_up_stays_and_falls_to_the_last_step() -> None:
    schedule = ScheduleSpec(kind="wsd", warmup_steps=3, cooldown_steps=4)
    rates = [rate_at(step, schedule, 12) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert rate_at(12, schedule, 12) == 0


def test_cosine_halves_in_the_middle_and_ends_at_its_final_fraction() -> None:
    schedule = ScheduleSpec(kind="cosine", warmup_steps=10, final_fraction=0.1)
    assert rate_at(10, schedule, 110) == 1
    assert rate_at(60, schedule, 110) == pytest.approx(0.55)
    assert rate_at(85, schedule, 110) == pytest.approx(0.1 + 0.9 * 0.5 * (1 - math.sqrt(0.5)))
    assert rate_at(110, schedule, 110) == pytest.approx(0.1)


def test_a_branch_follows_its_trunk_until_it_cools() -> None:
    trunk = ScheduleSpec(kind="constant", warmup_steps=5)
    branch = ScheduleSpec(kind="wsd", warmup_steps=5, cooldown_steps=10)
    assert [rate_at(s, trunk, 90) for s in range(30)] == [rate_at(s, branch, 40) for s in range(30)]
    assert rate_at(30, branch, 40) < 1


def test_a_cooldown_longer_than_its_stretch_is_refused() -> None:
    with pytest.raises(ValidationError, match="cooldown_steps 5 must fit between start_step 8 and stop_step 12"):
        small_spec(start_step=8, schedule={"kind": "wsd", "cooldown_steps": 5})


# Optimizer


def test_steps_are_those_of_torchs_adamw_with_clipping() -> None:
    torch.manual_seed(3)
    config = TransformerConfig(vocabulary=11, width=16, depth=1, heads=2)
    ours, theirs = Transformer(config), Transformer(config)
    theirs.load_state_dict(ours.state_dict())
    spec = AdamWSpec(weight_decay=0.1, clip=0.7)
    optimizer = AdamW(ours, ours.parameter_groups(), spec)
    peer = torch.optim.AdamW(
        [{"params": g.parameters, "weight_decay": 0.1 * g.decay, "rate": g.rate} for g in theirs.parameter_groups()],
        betas=spec.betas,
        eps=spec.epsilon,
    )
    clipped = 0
    for step in range(6):
        rate = 0.01 * (step + 1)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one) * 0.03 * step
            other.grad = one.grad.clone()
        clipped += float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)) > 0.7
        for group in peer.param_groups:
            group["lr"] = rate * group["rate"]
        peer.step()
        gradients = optimizer.gradients()
        optimizer.step(gradients, optimizer.norm(gradients), rate, torch.zeros(()))
    assert 0 < clipped < 6
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_decay_acts_on_matrices_only(tmp_path: Path) -> None:
    plain = training(small_spec(optimizer={"learning_rate": 0.01, "weight_decay": 0.0}), tmp_path / "plain")
    decayed = training(small_spec(optimizer={"learning_rate": 0.01, "weight_decay": 5.0}), tmp_path / "decayed")
    plain.step(0)
    decayed.step(0)
    others = dict(decayed.model.named_parameters())
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, others[name]) == (parameter.ndim == 1), name
    plain.checkpoints.close()
    decayed.checkpoints.close()


def test_a_skipped_update_changes_nothing() -> None:
    model = Transformer(TransformerConfig(vocabulary=11, width=16, depth=1, heads=2))
    optimizer = AdamW(model, model.parameter_groups(), AdamWSpec())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    before = {name: tensor.clone() for name, tensor in {**model.state_dict(), **optimizer.state()}.items()}
    gradients = optimizer.gradients()
    optimizer.step(gradients, optimizer.norm(gradients), 0.1, torch.ones(()))
    for name, tensor in {**model.state_dict(), **optimizer.state()}.items():
        assert torch.equal(tensor, before[name]), name


# Sums and counts


def test_a_step_is_the_same_for_any_accumulation(tmp_path: Path) -> None:
    weights = []
    for micro_batch in (1, 2, 4, 9):
        one = training(small_spec(micro_batch=micro_batch), tmp_path / str(micro_batch))
        for step in range(4):
            one.step(step)
        one.checkpoints.close()
        weights.append(dict(one.model.named_parameters()))
    for other in weights[1:]:
        for name, parameter in weights[0].items():
            torch.testing.assert_close(other[name], parameter, rtol=1e-4, atol=1e-5)


def test_validation_is_the_sum_over_all_examples_divided_once(tmp_path: Path) -> None:
    spec = small_spec()
    one = training(spec, tmp_path)
    nats, units, bytes_ = 0.0, 0, 0
    for index in np.concatenate(one.examples.validation):
        batch = one.examples.held_out.fetch(np.array([index]))
        targets = torch.from_numpy(batch["targets"])[0]
        logs = one.model.logits(torch.from_numpy(batch["inputs"])).log_softmax(-1)[0]  # type: ignore[operator]
        for position, target in enumerate(targets.tolist()):
            if target >= 0:
                nats -= logs[position, target].item()
                units += 1
                bytes_ += target % 3 + 1
    metrics = one.validate()
    one.checkpoints.close()
    assert 0 < units < 7 * 8
    assert metrics["val/loss"] == pytest.approx(nats / units, rel=1e-6)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / bytes_, rel=1e-6)


def test_logged_loss_and_counts_are_of_the_whole_interval(tmp_path: Path) -> None:
    run(small_spec(), tmp_path / "each", log_every=1)
    run(small_spec(), tmp_path / "fourth", log_every=4)
    each, fourth = read_rows(tmp_path / "each" / "record"), read_rows(tmp_path / "fourth" / "record")
    tokens = [0] + [row["metrics"]["train/units"] for row in each]
    for row in fourth:
        steps = range(row["step"] - 4, row["step"])
        nats = sum(each[step]["metrics"]["train/loss"] * (tokens[step + 1] - tokens[step]) for step in steps)
        assert row["metrics"]["train/loss"] == pytest.approx(nats / (tokens[row["step"]] - tokens[row["step"] - 4]))
        assert row["metrics"]["val/loss"] == each[row["step"] - 1]["metrics"]["val/loss"]


# Chance


def test_chance_depends_on_seed_step_and_micro_batch_alone() -> None:
    seeds = {chance(seed, step, micro) for seed in range(3) for step in range(20) for micro in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert chance(1, 2, 3) == chance(1, 2, 3)
    # torch's generator on the CPU takes the low 32 bits.
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)


def test_every_micro_batch_draws_its_own_dropout_and_the_same_again(tmp_path: Path) -> None:
    model = {"vocabulary": 17, "width": 16, "depth": 1, "heads": 2, "dropout": 0.5}
    one = training(small_spec(model=model), tmp_path)
    draws = []
    for step, micro in ((0, 0), (0, 1), (1, 0), (0, 0)):
        one.step.seed_chance(step, micro)
        draws.append(torch.rand(4))
    one.checkpoints.close()
    assert torch.equal(draws[0], draws[3])
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


# Guards


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    poisoned(monkeypatch, kind)
    spec = small_spec()
    examples = replace(ragged_examples(spec), train=PoisonAt(ragged_examples(spec), 6, 3))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "reducible.tasks.train"):
        result = run(spec, tmp_path, examples, checkpoint_every=2, log_every=5)
    assert result.status == "diverged"
    assert result.step == 6
    assert result.reason is not None
    assert f"step 6: the {kind} is not finite" in result.reason
    assert "micro-batch 3" in result.reason
    assert str(tmp_path / CHECKPOINTS / checkpoint_name(6)) in result.reason
    # Nothing of what came after reached a checkpoint.
    assert not (tmp_path / CHECKPOINTS / checkpoint_name(8)).exists()
    assert not (tmp_path / MODEL).exists()


def test_the_weights_stay_those_of_the_bad_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, "gradient")
    spec = small_spec()
    examples = replace(ragged_examples(spec), train=PoisonAt(ragged_examples(spec), 1, 0))  # type: ignore[arg-type]
    one = training(spec, tmp_path, examples)
    one.step(0)
    before = {name: tensor.clone() for name, tensor in state(one.step).items()}
    for step in (1, 2, 3):
        one.step(step)
    one.checkpoints.close()
    for name, tensor in state(one.step).items():
        assert torch.equal(tensor, before[name]), name


def test_a_spike_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, "spike")
    spec = small_spec(stop_step=FEWEST + 8, spike_guard=6.0)
    spike = FEWEST + 3
    examples = replace(ragged_examples(spec), train=PoisonAt(ragged_examples(spec), spike, 1))  # type: ignore[arg-type]
    one = training(spec, tmp_path, examples, log_every=1)
    weights = []
    take = Step.__call__

    def step(self: Step, number: int) -> None:
        take(self, number)
        weights.append(self.model.embedding.weight.detach().clone())

    monkeypatch.setattr(Step, "__call__", step)
    one.run()
    one.checkpoints.close()
    same = [number for number in range(1, spec.stop_step) if torch.equal(weights[number], weights[number - 1])]
    assert same == [spike]
    skipped = [row["metrics"]["train/skipped_steps"] for row in read_rows(tmp_path / "record")]
    assert skipped == [0] * spike + [1] * (spec.stop_step - spike)


def test_what_stays_high_is_no_spike() -> None:
    guard = SpikeGuard(3.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(FEWEST):
        noise = torch.rand((), generator=generator)
        assert guard(1 + 0.01 * noise, 1 + 0.01 * noise) == 0
    skips = [float(guard(torch.tensor(2.0), torch.tensor(1.0))) for _ in range(40)]
    assert skips[0] == 1
    assert skips[-1] == 0


def test_a_run_that_ends_above_its_start_has_diverged(tmp_path: Path) -> None:
    spec = small_spec(optimizer={"learning_rate": 3.0, "clip": None}, schedule={"kind": "constant"}, stop_step=10)
    result = run(spec, tmp_path)
    assert result.status == "diverged"
    assert result.reason is not None and "untrained model" in result.reason


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_step_looks_at_a_value_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """On a CPU nothing waits, so what would wait on a GPU is forbidden by name; -m gpu asks CUDA itself."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    one = training(small_spec(spike_guard=6.0, precision=precision), tmp_path)
    one.step(0)
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "nonzero"):

        def look(*_: Any, name: str = name) -> None:
            raise AssertionError(f"a step called Tensor.{name}")

        monkeypatch.setattr(torch.Tensor, name, look)
    for step in range(1, 5):
        one.step(step)
    monkeypatch.undo()
    one.checkpoints.close()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, precision: str) -> None:
    one = training(small_spec(spike_guard=6.0, precision=precision), tmp_path)
    one.step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 5):
            one.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        one.checkpoints.close()


# Precision and refusals


def test_bf16_without_hardware_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="train.precision: this CPU has no bf16"):
        training(small_spec(precision="bf16"), tmp_path)


def test_bf16_trains_in_fp32_weights(tmp_path: Path) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16")
    half, full = run(small_spec(precision="bf16"), tmp_path / "half"), run(small_spec(), tmp_path / "full")
    assert half.validation_loss == pytest.approx(full.validation_loss, rel=0.1)
    assert half.validation_loss != full.validation_loss


def test_activation_checkpointing_changes_memory_and_nothing_else(tmp_path: Path) -> None:
    model = {"vocabulary": 17, "width": 16, "depth": 2, "heads": 2, "dropout": 0.3}
    run(small_spec(model=model), tmp_path / "none")
    run(small_spec(model=model), tmp_path / "full", checkpointing="full")
    one, other = (load_file(tmp_path / kind / MODEL / "model.safetensors") for kind in ("none", "full"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_compiled_model_trains_the_same_to_rounding(tmp_path: Path) -> None:
    compiled, eager = run(small_spec(), tmp_path / "compiled", compile=True), run(small_spec(), tmp_path / "eager")
    assert compiled.validation_loss == pytest.approx(eager.validation_loss, rel=1e-4)


def test_a_missing_learning_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning_rate: neither given nor found"):
        training(small_spec(optimizer={"learning_rate": None}), tmp_path)


def test_the_result_says_what_it_cost(tmp_path: Path) -> None:
    spec = small_spec()
    result = run(spec, tmp_path)
    examples = ragged_examples(spec)
    units = sum(
        examples.train.units(examples.train.fetch(indices))
        for step in range(spec.stop_step)
        for indices in examples.train.micro_batches(step)
    )
    model = Transformer(TransformerConfig(**spec.model))
    assert result.units == units
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert result.flops == units * FAMILIES["transformer"].cost(model.config, Lengths.fixed(8)).training_flops_per_unit
    assert result.validation_loss is not None and result.train_loss is not None
    assert result.validation_loss < math.log(17)


def test_fixed_examples_do_not_depend_on_the_micro_batch() -> None:
    spec = small_spec()
    held_out = ragged_examples(spec).held_out.examples
    one, other = (np.concatenate(fixed(held_out, 7, size)) for size in (1, 3))
    assert (one == other).all()
