"""What optimizers share: groups of parameters, clipping and skipping that do not wait for the host, state by name.

A subclass names the tensors that it holds for each parameter, and updates one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reducible.models.layers.width_rule import ParameterGroup
from reducible.tasks.train.optimizers.settings import OptimizerSpec


@dataclass(frozen=True)
class Group:
    """Parameters that share a factor of the learning rate, and their state. Each list has one entry per parameter."""

    name: str
    rate: float
    decay: float
    parameters: list[nn.Parameter]
    values: list[Tensor]
    """The parameters' storage; under FSDP the part that this rank holds."""
    held: dict[str, list[Tensor]]
    """The part of the state on this rank, by the names in Optimizer.holds."""
    updates: Tensor
    """The number of updates so far, without skipped ones."""
    steps: list[Tensor]
    """`updates`, repeated for each parameter."""


class Optimizer:
    """Updates the trained parameters group by group, with learning rate x rate and weight decay x decay."""

    holds: ClassVar[tuple[str, ...]] = ()
    """The names of the tensors held for each parameter; each has the parameter's shape and starts at 0."""

    def __init__(
        self, model: nn.Module, groups: Sequence[ParameterGroup], spec: OptimizerSpec, zeroes: bool = False
    ) -> None:
        """zeroes: after a step, set the gradients to 0 in place instead of dropping them. All of them must exist."""
        self.spec, self.zeroes = spec, zeroes
        names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
        device = next(model.parameters()).device
        self.one = torch.ones((), device=device)
        self.sharded = any(isinstance(parameter, DTensor) for parameter in names)
        self.held: dict[str, Tensor] = {}
        self.groups = []
        for group in groups:
            parameters: list[Any] = [parameter for parameter in group.parameters if parameter.requires_grad]
            held: dict[str, list[Tensor]] = {kind: [] for kind in self.holds}
            for kind, tensors in held.items():
                for parameter in parameters:
                    tensor = torch.zeros_like(parameter, requires_grad=False)
                    self.held[f"{kind}.{names[parameter]}"] = tensor
                    tensors.append(_local(tensor))
            updates = torch.zeros((), device=device)
            self.groups.append(
                Group(
                    group.name,
                    group.rate,
                    spec.weight_decay * group.decay,
                    parameters,
                    [_local(parameter.detach()) for parameter in parameters],
                    held,
                    updates,
                    [updates] * len(parameters),
                )
            )
        self.trained = [parameter for group in self.groups for parameter in group.parameters]
        grouped = set(self.trained)
        forgotten = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in grouped]
        if forgotten:
            raise ValueError(f"the groups leave out {', '.join(forgotten)}")

    def update(self, group: Group, gradients: list[Tensor], rate: float, divisor: Tensor, skip: Tensor) -> None:
        """Updates a group's values and their state, by gradients / divisor and the learning rate.

        If skip (0.0 or 1.0, on the device) is 1, nothing changes, whatever the gradients are.
        """
        raise NotImplementedError

    def gradients(self) -> list[list[Tensor]]:
        """The gradients by group. A parameter that no loss reached has a gradient of zero."""
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
        """Does one update. If skip (0.0 or 1.0, on the device) is 1, nothing changes.

        Groups named in `frozen` stay as they are, with their state. If the norm is above the clip, gradients are
        divided by norm / clip. They are also divided by the loss scale if there is one, which the norm does not
        contain.
        """
        counted = self.one - skip
        divisor = self.one if self.spec.clip is None else (norm / self.spec.clip).clamp_(min=1.0)
        if loss_scale is not None:
            divisor = divisor * loss_scale
        for group, own in zip(self.groups, gradients, strict=True):
            if group.name in frozen:
                continue
            group.updates.add_(counted)
            self.update(group, own, learning_rate * group.rate, divisor, skip)

    def zero_grad(self) -> None:
        if self.zeroes:
            torch._foreach_zero_([parameter.grad for parameter in self.trained if parameter.grad is not None])
            return
        for parameter in self.trained:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The state for a checkpoint, by parameter name, not copied: loading writes into it."""
        return {**{f"updates.{group.name}": group.updates for group in self.groups}, **self.held}


def _local(tensor: Any) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
