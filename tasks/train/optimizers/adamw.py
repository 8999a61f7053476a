"""AdamW (Loshchilov and Hutter 2019) in one fused call per parameter group, with clipping and skipping inside it.

torch.optim.AdamW(fused=True) runs the same kernel, but collects and groups its tensors again in every step. With ten
thousand parameters that costs more than the update. Here the lists are made once. The kernel's arguments for loss
scaling, grad_scale and found_inf, do the clipping and skipping, so that neither waits for the host.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from reducible.models.layers.width_rule import adam_rule
from reducible.tasks.count import Number, Share
from reducible.tasks.train.optimizers.optimizer import Group, Optimizer
from reducible.tasks.train.optimizers.registry import OptimizerKind
from reducible.tasks.train.optimizers.settings import OptimizerSpec


class AdamWSpec(OptimizerSpec):
    kind: Literal["adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Annotated[Number, Field(gt=0)] = 1e-8


class AdamW(Optimizer):
    holds = ("first", "second")
    """m and v of Kingma and Ba 2015: running means of the gradient and of its square."""
    spec: AdamWSpec

    def update(self, group: Group, gradients: list[Tensor], rate: float, divisor: Tensor, skip: Tensor) -> None:
        beta1, beta2 = self.spec.betas
        torch._fused_adamw_(
            group.values,
            gradients,
            group.held["first"],
            group.held["second"],
            [],
            group.steps,  # the t of the bias correction
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group.decay,
            eps=self.spec.epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skip,
        )


ADAMW = OptimizerKind("AdamW", AdamWSpec, "AdamW's moments", lambda settings: 8, adam_rule, AdamW)
