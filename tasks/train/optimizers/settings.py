"""What every optimizer is told, and which optimizers there are. Adding one is its own file and a line of OPTIMIZERS.

An optimizer's file is imported when a spec names it.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from reducible.tasks.count import Number

if TYPE_CHECKING:
    from torch import nn

    from reducible.models.layers.width_rule import ParameterGroup
    from reducible.tasks.train.optimizers.optimizer import Optimizer

DEFAULT = "adamw"
OPTIMIZERS: dict[str, str] = {"adamw": "reducible.tasks.train.optimizers.adamw:ADAMW"}
"""By `optimizer.kind` of a recipe: where its OptimizerKind stands."""


class OptimizerSpec(BaseModel):
    """Settings that all have. Weight decay acts on matrices only; clip is the largest global gradient norm."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    learning_rate: Annotated[Number, Field(gt=0)] | None = 4e-3
    """That of the base width; the width rule carries it to others. None: what the input artifact `search` found."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    clip: Annotated[Number, Field(gt=0)] | None = 1.0
    """None: any."""


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: what it is told, what it holds, and how it is made."""

    title: str
    settings: type[OptimizerSpec]
    """`kind` in it is a Literal of the name alone, which is its default."""
    state: str
    """What the planner calls that which it holds."""
    state_bytes: Callable[[Any], int]
    """(settings) -> bytes that it holds for each trained parameter."""
    width_rule: "Callable[[Sequence[ParameterGroup]], list[ParameterGroup]]"
    """What carries its learning rate to other widths: one of models/layers/width_rule.py."""
    build: "Callable[[nn.Module, Sequence[ParameterGroup], Any, bool], Optimizer]"
    """(model, groups, settings, whether gradients are set to zero where they are)."""


def optimizer_kind(name: str) -> OptimizerKind:
    """The optimizer of that name; ValueError names the nearest one there is."""
    if name not in OPTIMIZERS:
        nearest = difflib.get_close_matches(str(name), OPTIMIZERS, n=1, cutoff=0)
        raise ValueError(f"there is no optimizer {name!r}; nearest is {nearest[0]!r}, all: {', '.join(OPTIMIZERS)}")
    module, _, row = OPTIMIZERS[name].partition(":")
    kind: OptimizerKind = getattr(import_module(module), row)
    return kind


def default_settings() -> OptimizerSpec:
    return optimizer_kind(DEFAULT).settings()  # type: ignore[call-arg]  # its kind has a default


def _settings(value: Any) -> Any:
    """A section as the settings of the optimizer that it names; those of another are unknown keys there."""
    if isinstance(value, Mapping):
        return optimizer_kind(value.get("kind", DEFAULT)).settings.model_validate(value)
    return value


AnyOptimizer = Annotated[SerializeAsAny[OptimizerSpec], BeforeValidator(_settings)]
