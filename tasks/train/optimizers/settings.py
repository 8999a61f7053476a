"""The settings that all optimizers share."""

from typing import Annotated

from pydantic import Field

from reducible.tasks.count import Number
from reducible.tasks.workflow.frozen import Frozen


class OptimizerSpec(Frozen):
    """Settings of every optimizer. Weight decay acts on matrices only; clip is the largest global gradient norm."""

    kind: str
    learning_rate: Annotated[Number, Field(gt=0)] | None = 4e-3
    """The rate at the base width; the width rule scales it to others. None: what the input artifact `search` found."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    clip: Annotated[Number, Field(gt=0)] | None = 1.0
    """None: no clipping."""
