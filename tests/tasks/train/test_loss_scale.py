"""fp16 and its loss scale: what is skipped, what comes back, and that it is state like any other.

Most CPUs have no fp16, and training refuses them for their slowness alone; here the refusal is lifted.
"""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import assert_identical, deterministic_rows
from safetensors.torch import load_file
from step_cases import PoisonAt, poisoned, run, training
from training_cases import Interrupted, gradients_and_weights, interrupted_at, ragged_examples, small_spec

from reducible.models.families.registry import FAMILIES
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.memory.gpus import GPUS
from reducible.tasks.errors import UserError
from reducible.tasks.train import guards, loss_scale
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loss_scale import LossScale
from reducible.tasks.train.peak import peak_flops
from reducible.tasks.train.resume import state
from reducible.tasks.train.step import Step
from reducible.tasks.train.train_spec import Execution, TrainSpec

INFINITE = math.inf


@pytest.fixture
def on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)


def fp16(**changes: Any) -> TrainSpec:
    return small_spec(precision="fp16", **changes)


# The scale alone


def scales(norms: list[float], first: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """The scale of every step and which were skipped, for norms without the scale."""
    monkeypatch.setattr(loss_scale, "FIRST", first)
    scale = LossScale(torch.device("cpu"))
    used, skipped = [], []
    for norm in norms:
        used.append(scale.scale.item())
        seen, skip = scale(torch.tensor(norm) * scale.scale)
        assert skip or seen.item() == norm or not math.isfinite(norm)
        skipped.append(skip.item())
    return used, skipped


def test_it_halves_where_a_gradient_overflows_and_doubles_after_enough_that_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    norms = [1.0, 1.0, INFINITE, 1.0, 1.0, 1.0, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0]
    used, skipped = scales(norms, 8.0, monkeypatch)
    assert used == [8, 8, 8, 4, 4, 4, 8, 8, 8, 4, 4, 4, 8]
    assert skipped == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_it_stays_between_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 1)
    used, _ = scales([0.0] * 30, loss_scale.LARGEST / 2**10, monkeypatch)
    assert used[-1] == loss_scale.LARGEST
    used, skipped = scales([INFINITE] * 6, 8.0, monkeypatch)
    assert used == [8, 4, 2, 1, 1, 1]
    assert skipped == [1, 1, 1, 0, 0, 0]  # the guard of what is not finite takes over


def test_an_overflow_shows_the_guards_the_norm_before_it() -> None:
    scale = LossScale(torch.device("cpu"))
    assert scale(torch.tensor(3.0 * 2**16))[0] == 3
    assert scale(torch.tensor(INFINITE))[0] == 3
    assert scale(torch.tensor(5.0 * 2**15))[0] == 5


def test_its_state_is_all_that_it_goes_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    norms = [1.0, INFINITE, 2.0, 1.0, 4.0, INFINITE, 1.0, 1.0, 1.0, INFINITE]
    for stop in range(len(norms)):
        straight = scale = LossScale(torch.device("cpu"))
        for step, norm in enumerate(norms):
            if step == stop:
                scale = LossScale(torch.device("cpu"))
                scale.restore(json.loads(json.dumps(straight.state())))
            expected = straight(torch.tensor(norm))
            assert scale is straight or scale(torch.tensor(norm)) == expected
            assert scale.state() == straight.state()


# In training


def test_where_nothing_rounds_a_scale_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    """With fp32 under it: a power of 2 goes in and comes out. Several micro-batches, clipping and the spike guard."""
    monkeypatch.setattr(Step, "autocast", lambda self: nullcontext())
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 5)
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 0.01, "clip": 0.3}, "spike_guard": 6.0}
    run(small_spec(**changes), tmp_path / "fp32", log_every=1)
    run(fp16(**changes), tmp_path / "scaled", log_every=1)
    one, other = (load_file(tmp_path / kind / MODEL / "model.safetensors") for kind in ("fp32", "scaled"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows, plain = deterministic_rows(tmp_path / "scaled"), deterministic_rows(tmp_path / "fp32")
    assert [row.pop("train/loss_scale") for row in rows] == [2.0**16] * 4 + [2.0**17] * 5 + [2.0**18] * 3
    assert [row.pop("train/overflowed_steps") for row in rows] == [0] * 12
    assert rows == plain
    assert min(row["train/gradient_norm"] for row in plain) > 0.3


class Faint(Transformer):
    """A loss so small that its gradients lie near 1e-8."""

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:
        loss = super().forward(batch)
        return loss._replace(nats=loss.nats * 2.0**-20)


def test_gradients_of_1e_8_vanish_without_the_scale_and_train_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    build = FAMILIES["transformer"]
    monkeypatch.setitem(FAMILIES, "transformer", replace(build, build=lambda config: Faint(config)))
    optimizer = {"learning_rate": 0.01, "epsilon": 1e-20, "weight_decay": 0.0}
    names = [name for name, p in Transformer(TransformerConfig(**small_spec().model)).named_parameters() if p.ndim > 1]
    reference = small_spec(optimizer=optimizer)
    exact = gradients_and_weights(reference, Execution(), ragged_examples(reference), tmp_path / "exact", 1)
    size = torch.cat([exact["gradient 0"][name].flatten() for name in names]).abs()
    assert 1e-9 < size.median() < 1e-7
    spec = fp16(optimizer=optimizer)
    lost, losses = {}, {}
    for scale in (1.0, 2.0**16):
        monkeypatch.setattr(loss_scale, "FIRST", scale)
        seen = gradients_and_weights(spec, Execution(), ragged_examples(spec), tmp_path / f"step-{scale}", 1)
        gradient = torch.cat([seen["gradient 0"][name].flatten() / scale for name in names])
        expected = torch.cat([exact["gradient 0"][name].flatten() for name in names])
        lost[scale] = float(((gradient == 0) & (expected != 0)).float().mean())
        losses[scale] = run(spec, tmp_path / f"run-{scale}").validation_loss
        if scale > 1:
            assert (gradient - expected).norm() / expected.norm() < 0.01
    fp32 = run(reference, tmp_path / "fp32").validation_loss
    assert lost[1.0] > 0.5 and lost[2.0**16] < 0.01
    assert losses[2.0**16] == pytest.approx(fp32, rel=0.02)
    first = math.log(17) * 2.0**-20
    assert fp32 is not None and losses[1.0] is not None
    assert first - losses[1.0] < 0.7 * (first - fp32)


def test_an_overflow_changes_nothing_but_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**40)
    one = training(fp16(), tmp_path)
    before = {name: tensor.clone() for name, tensor in state(one.step).items()}
    one.step(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(one.step).items())
    assert one.step.loss_scale is not None
    assert one.step.loss_scale.scale == 2.0**39 and one.step.loss_scale.overflows == 1
    one.checkpoints.close()


def test_it_finds_the_scale_that_fits_and_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**22)
    result = run(fp16(stop_step=24), tmp_path / "fp16", log_every=1)
    assert result.status == "finished"
    rows = deterministic_rows(tmp_path / "fp16")
    overflows = [row["train/overflowed_steps"] for row in rows]
    assert 0 < overflows[-1] == overflows[12] < 10
    assert rows[-1]["train/loss_scale"] == 2.0 ** (22 - overflows[-1])
    assert all(math.isfinite(row["train/gradient_norm"]) for row in rows)
    assert result.validation_loss is not None and result.validation_loss < math.log(17) - 0.5


@pytest.mark.parametrize("micro_batch", [1, 4, 9])
def test_micro_batches_add_up_to_the_same_step(tmp_path: Path, on_any_cpu: None, micro_batch: int) -> None:
    exact = small_spec(micro_batch=9)
    spec = fp16(micro_batch=micro_batch)
    expected = gradients_and_weights(exact, Execution(), ragged_examples(exact), tmp_path / "exact", 1)["gradient 0"]
    seen = gradients_and_weights(spec, Execution(), ragged_examples(spec), tmp_path / "fp16", 1)["gradient 0"]
    for name, gradient in expected.items():
        difference = (seen[name] / 2**16 - gradient).norm() / gradient.norm()
        assert difference < 0.01, (name, difference)


def test_resumed_equals_never_stopped_while_the_scale_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    """Overflows before and after the stop, a doubling under way, the spike guard beside it."""
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**20)
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 2)
    monkeypatch.setattr(guards, "FEWEST", 4)
    model = {"vocabulary": 17, "width": 16, "depth": 2, "heads": 2, "dropout": 0.2}
    spec = fp16(model=model, stop_step=18, spike_guard=0.1)
    broken = interrupted_at(ragged_examples(spec), 10)
    with pytest.raises(Interrupted):
        run(spec, tmp_path / "broken", broken, checkpoint_every=3, log_every=1)
    run(spec, tmp_path / "broken", checkpoint_every=3, log_every=1)
    run(spec, tmp_path / "straight", log_every=1)
    rows = deterministic_rows(tmp_path / "straight")
    counts = [row["train/overflowed_steps"] for row in rows]
    assert 0 < counts[8] < counts[-1]  # goes on after the checkpoint of step 9
    scales = [row["train/loss_scale"] for row in rows]
    assert max(scales[9:]) > scales[8] and min(scales[9:]) < max(scales[9:])
    assert 0 < rows[8]["train/skipped_steps"] < rows[-1]["train/skipped_steps"]
    assert_identical(tmp_path / "broken", tmp_path / "straight")


# Guards


def test_one_bad_gradient_is_an_overflow_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    poisoned(monkeypatch, "gradient")
    spec = fp16(spike_guard=6.0)
    examples = replace(ragged_examples(spec), train=PoisonAt(ragged_examples(spec), 6, 3))  # type: ignore[arg-type]
    assert run(spec, tmp_path, examples, log_every=1).status == "finished"
    rows = deterministic_rows(tmp_path)
    assert [row["train/overflowed_steps"] for row in rows] == [0] * 6 + [1] * 6
    assert rows[6]["train/gradient_norm"] == rows[5]["train/gradient_norm"]
    assert rows[-1]["train/skipped_steps"] == 0


def test_gradients_that_stay_bad_at_the_smallest_scale_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    poisoned(monkeypatch, "gradient")
    monkeypatch.setattr(loss_scale, "FIRST", 4.0)
    spec = fp16()
    batches = PoisonAt(ragged_examples(spec), 0, 3)
    batches.fetch = lambda key: PoisonAt.fetch(batches, (0, *key[1:]) if key[0] >= 5 else (1, *key[1:]))  # type: ignore[method-assign]
    examples = replace(ragged_examples(spec), train=batches)  # type: ignore[arg-type]
    result = run(spec, tmp_path, examples, log_every=2, checkpoint_every=2)
    assert result.status == "diverged" and result.step == 7  # 4 and 2 overflow at steps 5 and 6
    assert result.reason is not None
    assert "the gradient is not finite, at the smallest loss scale, from micro-batch 3" in result.reason


def test_a_loss_that_is_not_finite_ends_the_run_at_any_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_any_cpu: None
) -> None:
    poisoned(monkeypatch, "loss")
    spec = fp16()
    examples = replace(ragged_examples(spec), train=PoisonAt(ragged_examples(spec), 6, 3))  # type: ignore[arg-type]
    result = run(spec, tmp_path, examples, log_every=5)
    assert result.status == "diverged" and result.step == 6
    assert result.reason is not None and "the loss is not finite in micro-batch 3" in result.reason
    assert not (tmp_path / MODEL).exists()


# The device


def test_fp16_without_hardware_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="train.precision: this CPU has no fp16 .* use fp32"):
        training(fp16(), tmp_path)


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("Tesla V100-SXM2-16GB", (15.7e12, None, 125e12)),  # tensor cores for fp16 alone
        ("Tesla V100-PCIE-32GB", (14e12, None, 112e12)),
        ("Tesla T4", (8.1e12, None, 65e12)),
        ("NVIDIA A100-SXM4-80GB", (19.5e12, 312e12, 312e12)),
        ("NVIDIA A10", (31.2e12, 125e12, 125e12)),
        ("NVIDIA L40S", (91.6e12, 362e12, 362e12)),
        ("NVIDIA H100 80GB HBM3", (66.9e12, 989.4e12, 989.4e12)),
        ("Unheard-of 1", (None, None, None)),
    ],
)
def test_peaks_are_those_of_the_precision(name: str, peaks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert tuple(peak_flops(torch.device("cuda"), precision) for precision in ("fp32", "bf16", "fp16")) == peaks
    assert all("fp32" in known.peaks for known in GPUS.values())
