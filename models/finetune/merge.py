"""Merging an adapter into its base, and how much of the update survives when the sum is stored.

The sum starts from the dequantised base in fp32, which the adapter was trained on. With the original base, the logits
would differ by as much as quantisation changes them. Storing the sum in few bits rounds small updates away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reducible.models.finetune.held_matrices import HeldMatrix
from reducible.models.quantise.quantised_base import FOUR_BITS, KINDS, Blocks, Quantisation, plain_name
from reducible.models.step_settings import FewBits


class Survival(NamedTuple):
    """What survives of an update d when W0 + d is stored. The stored change is stored(W0 + d) - stored(W0)."""

    share: float
    """The part of the stored change along d, <change, d> / <d, d>: 1 if all of d survives."""
    noise: float
    """The norm of the rest of the stored change, relative to the norm of d."""


@dataclass(frozen=True)
class MergedMatrix:
    name: str
    relative_size: float | None
    """|d| / |W0|, Frobenius norms; None if W0 is 0."""
    survival: dict[str, Survival]
    """By the format that the sum may be stored in: fp32, bf16, fp16, nf4, fp4, int8."""


def _in_blocks(kind: FewBits) -> Callable[[Tensor], Tensor]:
    return lambda dense: Blocks.of(dense, Quantisation(kind))()


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda dense: dense,
    "bf16": lambda dense: dense.bfloat16(),
    "fp16": lambda dense: dense.half(),
    **{kind: _in_blocks(kind) for kind in KINDS},
}
"""What each format gives back after storage. Formats in blocks give fp32."""


@torch.no_grad()
def merged(
    model: nn.Module, name: str = "default", stored: str = "fp32", allow_4bit: bool = False
) -> tuple[dict[str, Tensor], list[MergedMatrix]]:
    """The state of the plain model with an adapter added in fp32, and what of the update would survive in each format.

    If `stored` is another format, the matrices with updates are rounded to it.

    Raises:
        ValueError: an unknown adapter, an unknown format, and four bits without `allow_4bit`.
    """
    if stored not in STORED:
        raise ValueError(f"merge: {stored!r} must be one of {', '.join(STORED)}")
    if stored in FOUR_BITS and not allow_4bit:
        raise ValueError(
            f"merge: {stored} would round most of a usual update away; store fp32 or bf16, or pass allow_4bit=True"
        )
    updates = _updates(model, name)
    state, reports = {}, []
    for at, weight in plain_state(model).items():
        if at in updates:
            update = updates.pop(at)
            reports.append(_report(at, weight, update))
            weight = STORED[stored](weight + update)
        state[at] = weight
    assert not updates
    return state, reports


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The base, dense and in fp32, by the names of the plain model: without adapters, dequantised."""
    held = {plain_name(at): matrix.frozen() for at, matrix in model.named_modules() if isinstance(matrix, HeldMatrix)}
    rest = {
        plain_name(at): tensor
        for at, tensor in model.state_dict().items()
        if ".matrices." not in f".{at}" and "lora_" not in at
    }
    return {
        at: tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
        for at, tensor in {**rest, **held}.items()
    }


def _updates(model: nn.Module, name: str) -> dict[str, Tensor]:
    """(alpha / r) B A by the plain name of the matrix, in fp32."""
    updates = {}
    module: Any
    for at, module in model.named_modules():
        if isinstance(module, HeldMatrix) and name in module.scaling:
            updates[plain_name(at)] = module.update(name).float()
        elif hasattr(module, "get_delta_weight") and name in module.scaling:
            updates[f"{plain_name(at)}.weight"] = module.get_delta_weight(name).float()
    if not updates:
        raise ValueError(f"adapter {name!r}: the model has none of that name")
    return updates


def _report(name: str, weight: Tensor, update: Tensor) -> MergedMatrix:
    relative = float(update.norm() / weight.norm()) if weight.any() else None
    return MergedMatrix(name, relative, {kind: survival(weight, update, kind) for kind in STORED})


def survival(weight: Tensor, update: Tensor, stored: str) -> Survival:
    """What survives of an update when the sum is stored. An update of 0 survives whole."""
    if not update.any():
        return Survival(1.0, 0.0)
    keep, d = STORED[stored], update.double()
    change = keep(weight + update).double() - keep(weight).double()
    share = (change * d).sum() / (d * d).sum()
    return Survival(float(share), float((change - share * d).norm() / d.norm()))
