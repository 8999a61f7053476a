"""AdamW in one fused call per parameter group, with clipping and skipping inside it and state by name.

torch.optim.AdamW(fused=True) runs the same kernel, but gathers and groups its tensors anew in every step: on models
of ten thousand parameters that costs more than the update. Here the lists are made once. grad_scale and found_inf,
the kernel's hooks for loss scaling, carry clipping and skipping, so that neither needs the host to look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reducible.models.layers.width_rule import ParameterGroup
from reducible.tasks.train.train_spec import OptimizerSpec


@dataclass(frozen=True)
class _Group:
    rate: float
    decay: float
    parameters: list[nn.Parameter]
    values: list[Tensor]
    """The parameters' storage; under FSDP the part that this rank holds."""
    first: list[Tensor]
    """m of Kingma and Ba 2015, Loshchilov and Hutter 2019: running mean of the gradient."""
    second: list[Tensor]
    """v: running mean of its square."""
    steps: list[Tensor]
    name: str
    updates: Tensor
    """Updates done, skipped ones not counted: the t of the bias correction."""


class AdamW:
    """Steps groups of the model's parameters, those that are trained: learning rate x rate, weight decay x decay."""

    def __init__(
        self, model: nn.Module, groups: Sequence[ParameterGroup], spec: OptimizerSpec, zeroes: bool = False
    ) -> None:
        """zeroes: gradients, which are all there, are not dropped after a step but set to 0 where they are."""
        self.spec, self.zeroes = spec, zeroes
        names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
        device = next(model.parameters()).device
        self.one = torch.ones((), device=device)
        self.sharded = any(isinstance(parameter, DTensor) for parameter in names)
        self.moments: dict[str, Tensor] = {}
        self.groups = []
        for group in groups:
            parameters: list[Any] = [parameter for parameter in group.parameters if parameter.requires_grad]
            moments: dict[str, list[Tensor]] = {"first": [], "second": []}
            for kind, tensors in moments.items():
                for parameter in parameters:
                    moment = torch.zeros_like(parameter, requires_grad=False)
                    self.moments[f"{kind}.{names[parameter]}"] = moment
                    tensors.append(_local(moment))
            updates = torch.zeros((), device=device)
            self.groups.append(
                _Group(
                    group.rate,
                    spec.weight_decay * group.decay,
                    parameters,
                    [_local(parameter.detach()) for parameter in parameters],
                    moments["first"],
                    moments["second"],
                    [updates] * len(parameters),
                    group.name,
                    updates,
                )
            )
        self.trained = [parameter for group in self.groups for parameter in group.parameters]
        grouped = set(self.trained)
        forgotten = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in grouped]
        if forgotten:
            raise ValueError(f"the groups leave out {', '.join(forgotten)}")

    def gradients(self) -> list[list[Tensor]]:
        """By group; a parameter that no loss reached has a gradient of zero."""
        return [
            [
                torch.zeros_like(value) if parameter.grad is None else _local(parameter.grad)
                for parameter, value in zip(group.parameters, group.values, strict=True)
            ]
            for group in self.groups
        ]

    def norm(self, gradients: list[list[Tensor]]) -> Tensor:
        """Global Euclidean norm, a scalar on the device; the same on every rank."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g for group in gradients for g in group])))
        if self.sharded:
            square = norm.square()
            dist.all_reduce(square)
            norm = square.sqrt()
        return norm

    def step(
        self,
        gradients: list[list[Tensor]],
        norm: Tensor,
        learning_rate: float,
        skip: Tensor,
        frozen: frozenset[str] = frozenset(),
        loss_scale: Tensor | None = None,
    ) -> None:
        """One update; none where skip (0.0 or 1.0, on the device) is 1, and then nothing changes.

        Groups whose names are in `frozen` stay as they are, moments included. Gradients of a norm above the clip are
        divided by norm / clip inside the kernel. With a loss scale the gradients are that many times too large, and
        the norm is not: the kernel divides by it as well.
        """
        counted = self.one - skip
        divisor = self.one if self.spec.clip is None else (norm / self.spec.clip).clamp_(min=1.0)
        if loss_scale is not None:
            divisor = divisor * loss_scale
        beta1, beta2 = self.spec.betas
        for group, own in zip(self.groups, gradients, strict=True):
            if group.name in frozen:
                continue
            group.updates.add_(counted)
            torch._fused_adamw_(
                group.values,
                own,
                group.first,
                group.second,
                [],
                group.steps,
                lr=learning_rate * group.rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=group.decay,
                eps=self.spec.epsilon,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
                found_inf=skip,
            )

    def zero_grad(self) -> None:
        if self.zeroes:
            torch._foreach_zero_([parameter.grad for parameter in self.trained if parameter.grad is not None])
            return
        for parameter in self.trained:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by parameter name, not copied: loading writes into it."""
        return {**{f"updates.{group.name}": group.updates for group in self.groups}, **self.moments}


def _local(tensor: Any) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
