"""An optimizer as somebody adds one: gradient descent with momentum. As a script: toy_sgd.py WORK [STEP DELAY]."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from reducible.models.layers.width_rule import one_rate
from reducible.tasks.train.optimizers.optimizer import Group, Optimizer
from reducible.tasks.train.optimizers.registry import OPTIMIZERS, OptimizerKind
from reducible.tasks.train.optimizers.settings import OptimizerSpec


class SgdSpec(OptimizerSpec):
    kind: Literal["toy-sgd"] = "toy-sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class Sgd(Optimizer):
    holds = ("velocity",)
    spec: SgdSpec

    def update(self, group: Group, gradients: list[Tensor], rate: float, divisor: Tensor, skip: Tensor) -> None:
        for value, gradient, velocity in zip(group.values, gradients, group.held["velocity"], strict=True):
            after = self.spec.momentum * velocity + gradient / divisor
            velocity.copy_(torch.where(skip == 1, velocity, after))
            stepped = value - rate * (velocity + group.decay * value)
            value.copy_(torch.where(skip == 1, value, stepped))


SGD = OptimizerKind("SGD", SgdSpec, "SGD's velocity", lambda settings: 4, one_rate, Sgd)
LINE = "toy_sgd:SGD"


if __name__ == "__main__":
    import train_alone

    OPTIMIZERS["toy-sgd"] = LINE
    train_alone.main(Path(sys.argv[1]), *sys.argv[2:], optimizer={"kind": "toy-sgd", "learning_rate": 0.05})
