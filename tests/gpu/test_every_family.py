"""Training on a GPU, for whatever FAMILIES holds: the CPU's step, half precision, shards, resuming, and no waiting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from family_cases import family_spec, settings, training_data
from family_trainings import assert_resumes
from step_cases import training
from training_cases import gradients_and_weights

from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.train_spec import Execution, TrainSpec

pytestmark = pytest.mark.gpu
EVERY = sorted(FAMILIES)
WAITS = {
    "seq2seq": "packs sources by lengths that the host must know",
    "linear-gaussian": "reads which values are missing",
}
"""Families whose step waits for the device, as docs/training.md says."""
FP32 = 2e-4
"""Relative error of a parameter's gradient in fp32: sums in another order."""
LATER = 5e-3
"""The same after updates: Adam divides by the size of a gradient, and so makes much of what is nearly 0."""
HALF = {"bf16": 0.05, "fp16": 0.01}
"""Relative error of the whole gradient: products with 8 and 11 binary digits through a few layers."""

Seen = dict[str, dict[str, torch.Tensor]]


def seen(spec: TrainSpec, work: Path, steps: int = 3, **execution: Any) -> Seen:
    return gradients_and_weights(spec, Execution(**execution), training_data(spec), work, steps)


def size(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm())


def assert_close(found: Seen, expected: Seen, first: float = FP32, later: float = LATER) -> None:
    """Parameter by parameter; one whose gradient is nothing but rounding is held to the size of all."""
    for what, tensors in expected.items():
        limit, floor = (first if what == "gradient 0" else later), 1e-3 * size(tensors)
        for name, tensor in tensors.items():
            error = float((found[what][name].double() - tensor.double()).norm())
            allowed = limit * max(float(tensor.double().norm()), floor)
            assert error <= allowed, f"{what} of {name}: off by {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("name", EVERY)
def test_steps_are_the_cpus(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_on_the_cpu: None) -> None:
    spec = family_spec(name, model=settings(name, dropout=0.0))
    found = seen(spec, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_close(found, seen(spec, tmp_path / "cpu"))


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_near_fp32(name: str, precision: Any, tmp_path: Path, drawn_on_the_cpu: None) -> None:
    spec = family_spec(name, model=settings(name, dropout=0.0))
    expected = seen(spec, tmp_path / "fp32", steps=1)["gradient 0"]
    found = seen(spec.model_copy(update={"precision": precision}), tmp_path / "half", steps=1)["gradient 0"]
    scale = 2.0**16 if precision == "fp16" else 1.0  # of the loss, in the first step
    error = {parameter: found[parameter] / scale - gradient for parameter, gradient in expected.items()}
    assert size(error) <= HALF[precision] * size(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in WAITS])
def test_no_step_waits_for_the_gpu(name: str, precision: Any, tmp_path: Path) -> None:
    spec = family_spec(name, precision=precision, spike_guard=6.0)
    one = training(spec, tmp_path, training_data(spec))
    one.step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            one.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        one.checkpoints.close()


@pytest.mark.parametrize("name", EVERY)
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """To the bit, with deterministic kernels; dropout and latents are drawn on the device."""
    assert_resumes(family_spec(name, deterministic=True), tmp_path, stop=8)


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One rank that thinks it is among others, over NCCL."""
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1, device_id=device)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", EVERY)
def test_fsdp_on_one_rank_is_one_process(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = family_spec(name)
    alone = seen(spec, tmp_path / "alone")
    request.getfixturevalue("joined")
    assert_close(seen(spec, tmp_path / "sharded", strategy="fsdp"), alone)
