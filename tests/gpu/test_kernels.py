"""Which kernels a step runs on a GPU, and that those compute what their references say."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapter_cases import cases, loss
from step_cases import run, training
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_cases import small_spec

import reducible.models.quantise.reference as oracle
from reducible.models.finetune.lora import Adapter, add_adapter
from reducible.models.layers.attention import attention, causal_mask
from reducible.tasks.train import loss_scale
from reducible.tasks.workflow.record import read_rows

pytestmark = pytest.mark.gpu

FLASH = {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_cudnn_attention"}
"""cuDNN's is flash attention as well, and on Hopper torch takes it first."""
SLOW = {"aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_attention_math"}


def operators_of(run: Callable[[], Any]) -> dict[str, int]:
    """How often each operator and kernel ran, by name."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        run()
        torch.cuda.synchronize()
    return {event.key: event.count for event in recorded.key_averages()}


@pytest.mark.parametrize("key_value_heads", [2, 1])
def test_a_transformers_step_runs_flash_attention(key_value_heads: int, tmp_path: Path) -> None:
    model = {"vocabulary": 17, "width": 128, "depth": 2, "heads": 2, "key_value_heads": key_value_heads}
    one = training(small_spec(model=model, precision="bf16"), tmp_path)
    one.step(0)
    ran = operators_of(lambda: one.step(1))
    one.checkpoints.close()
    assert FLASH & ran.keys()
    assert not SLOW & ran.keys()


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION], ids=["flash", "cudnn"])
@pytest.mark.parametrize("key_value_heads", [4, 1])
def test_flash_attention_is_the_definitions(backend: Any, key_value_heads: int) -> None:
    """Forward and backward, at the length and head size of GPT-2, in bf16 against float64."""
    torch.manual_seed(0)
    shapes = [(2, heads, 1024, 64) for heads in (4, key_value_heads, key_value_heads)]
    given = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    with sdpa_kernel(backend):
        found = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=key_value_heads != 4)
    repeated = [exact[0], *(tensor.repeat_interleave(4 // key_value_heads, dim=1) for tensor in exact[1:])]
    expected = attention(*repeated, causal_mask(1024, device=given[0].device))
    weight = torch.randn_like(found)
    found.backward(weight)
    expected.backward(weight.double())
    pairs = [(found, expected), *((one.grad, other.grad) for one, other in zip(given, exact, strict=True))]
    for one, other in pairs:
        assert one is not None and other is not None
        assert float((one.double() - other).norm() / other.norm()) < 1e-2


def test_an_update_is_a_few_fused_kernels(tmp_path: Path) -> None:
    one = training(small_spec(), tmp_path)
    one.step(0)
    ran = operators_of(lambda: one.step(1))
    one.checkpoints.close()
    fused = sum(count for name, count in ran.items() if "FusedAdam" in name)
    assert 1 <= fused <= 2 * len(one.step.optimizer.groups)
    assert fused < len(list(one.model.parameters()))


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_fused_update_is_adamw_in_float64(skip: float, tmp_path: Path, gpu: torch.device) -> None:
    """Clipping and skipping ride on the kernel's hooks for loss scaling."""
    spec = small_spec()
    one = training(spec, tmp_path)
    torch.manual_seed(0)
    gradients = [[torch.randn_like(value) for value in group.values] for group in one.step.optimizer.groups]
    before = [[value.double() for value in group.values] for group in one.step.optimizer.groups]
    given = [[gradient.double() for gradient in group] for group in gradients]
    norm = one.step.optimizer.norm(gradients)
    one.step.optimizer.step(gradients, norm, 0.01, torch.full((), skip, device=gpu))
    beta1, beta2 = spec.optimizer.betas
    for group, values, own in zip(one.step.optimizer.groups, before, given, strict=True):
        for value, gradient, found in zip(values, own, group.values, strict=True):
            clipped = gradient / max(1.0, float(norm) / (spec.optimizer.clip or float("inf")))
            first, second = (1 - beta1) * clipped, (1 - beta2) * clipped.square()
            rate = 0.01 * group.rate
            move = (first / (1 - beta1)) / ((second / (1 - beta2)).sqrt() + spec.optimizer.epsilon)
            expected = value if skip else value * (1 - rate * group.decay) - rate * move
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    one.checkpoints.close()


def test_fp16_finds_the_scale_that_fits_and_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**30)
    result = run(small_spec(precision="fp16", stop_step=40), tmp_path, log_every=1)
    rows = [row["metrics"] for row in read_rows(tmp_path / "record")]
    scales = [metrics["train/loss_scale"] for metrics in rows if "train/loss_scale" in metrics]
    overflowed = [metrics["train/overflowed_steps"] for metrics in rows if "train/overflowed_steps" in metrics]
    assert result.status == "finished"
    assert scales[0] > scales[-1] >= 1.0
    assert 0 < overflowed[-1] < 30 and overflowed[-1] == overflowed[-5]
    assert result.train_loss is not None and result.train_loss < 2.8  # log 17 = 2.83 of a uniform guess


# bitsandbytes ---------------------------------------------------------------------------------------------------------


def quantised_base() -> Any:
    pytest.importorskip("bitsandbytes")
    import reducible.models.quantise.quantised_base as found

    return found


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("shape", [(64, 32), (320, 80), (512, 512), (100, 130), (33, 33)])
def test_blocks_are_what_the_mathematics_says(kind: str, shape: tuple[int, int]) -> None:
    base = quantised_base()
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, shape[1])
    levels = {"nf4": oracle.NF4, "fp4": oracle.FP4, "int8": oracle.INT8}[kind]
    expected = oracle.dequantise(oracle.quantise(dense, levels))
    found = base.Blocks.of(dense.cuda(), base.Quantisation(kind, double=False))().cpu()
    wrong = (found - expected).abs() > 1e-5 * expected.abs()
    # A number in the middle between two levels may go either way.
    assert wrong.float().mean() <= 1e-3
    assert (found - dense).norm() <= 1.001 * (expected - dense).norm()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_a_cpu_quantised_is_the_same_on_the_gpu(kind: str, double: bool) -> None:
    base = quantised_base()
    blocks = base.Blocks.of(torch.randn(320, 80), base.Quantisation(kind, double))
    expected = blocks()
    torch.testing.assert_close(blocks.cuda()().cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "nf4", "int8"])
@pytest.mark.parametrize("name", [name for name in cases() if name != "linear-gaussian" and not name.startswith("ssm")])
def test_adapters_beside_held_matrices_get_the_cpus_gradients(name: str, method: str, drawn_on_the_cpu: None) -> None:
    """cuDNN copies weights that lie apart into one block for each call; a matrix held for an adapter is made anew."""
    torch.manual_seed(0)
    build, batch_of = cases(width=64)[name]
    model, batch = build(), batch_of()
    if method != "lora":
        base = quantised_base()
        base.quantise_model(model, base.Quantisation(method))
    add_adapter(model, Adapter(rank=4))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    there = copy.deepcopy(model).cuda()
    moved = {key: tensor.cuda() for key, tensor in batch.items()}
    for _ in range(2):  # twice: nothing of the first call may be taken for the second
        expected, found = gradients(model, batch), gradients(there, moved)
        assert expected
        for parameter, gradient in expected.items():
            error = float((found[parameter].cpu() - gradient).norm() / gradient.norm().clamp(min=1e-3))
            assert error < 1e-3, f"{parameter}: {error:.1e}"
        with torch.no_grad():
            for one, other in zip(model.parameters(), there.parameters(), strict=True):
                if one.requires_grad:
                    one.mul_(1.5)
                    other.mul_(1.5)


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
