"""The optimizers by name, as `optimizer.kind` of a recipe says. A new one is its own file and a line of OPTIMIZERS.

An optimizer's file is imported when a spec names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from reducible.tasks.train.optimizers.settings import OptimizerSpec
from reducible.tasks.words import unknown

if TYPE_CHECKING:
    from torch import nn

    from reducible.models.layers.width_rule import ParameterGroup
    from reducible.tasks.train.optimizers.optimizer import Optimizer

DEFAULT = "adamw"
OPTIMIZERS: dict[str, str] = {"adamw": "reducible.tasks.train.optimizers.adamw:ADAMW"}
"""The place of each OptimizerKind, by the `optimizer.kind` of a recipe."""


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: its settings, what it holds, and how it is made."""

    title: str
    settings: type[OptimizerSpec]
    """Its field `kind` is a Literal of the name only, which is its default."""
    state: str
    """The planner's name for its state."""
    state_bytes: Callable[[Any], int]
    """(settings) -> bytes of state for each trained parameter."""
    width_rule: "Callable[[Sequence[ParameterGroup]], list[ParameterGroup]]"
    """The rule of models/layers/width_rule.py that scales its learning rate to other widths."""
    build: "Callable[[nn.Module, Sequence[ParameterGroup], Any, bool], Optimizer]"
    """(model, groups, settings, whether gradients are set to 0 in place instead of dropped)."""


def optimizer_kind(name: object) -> OptimizerKind:
    """The optimizer of that name.

    Raises:
        ValueError: there is none; the line names the nearest one and all.
    """
    if not isinstance(name, str) or name not in OPTIMIZERS:  # a recipe may hold a list there
        raise ValueError(unknown("optimizer", name, OPTIMIZERS))
    module, _, row = OPTIMIZERS[name].partition(":")
    kind: OptimizerKind = getattr(import_module(module), row)
    return kind


def default_settings() -> OptimizerSpec:
    return optimizer_kind(DEFAULT).settings()  # type: ignore[call-arg]  # its kind has a default


def _settings(value: Any) -> Any:
    """A section as the settings of the optimizer that it names. Settings of another optimizer are unknown keys."""
    if isinstance(value, Mapping):
        return optimizer_kind(value.get("kind", DEFAULT)).settings.model_validate(value)
    return value


AnyOptimizer = Annotated[SerializeAsAny[OptimizerSpec], BeforeValidator(_settings)]
