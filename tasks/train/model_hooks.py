"""What training asks of a model beside its loss; a model that says nothing has a default."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from reducible.models.layers.width_rule import ParameterGroup


def compiles(model: nn.Module) -> bool:
    """Whether torch.compile gains the model something and leaves its chance as it is."""
    return bool(getattr(model, "compiles", True))


def stochastic(model: nn.Module) -> bool:
    """Whether a forward pass draws anything."""
    return bool(getattr(model, "stochastic", True))


def in_pieces(model: nn.Module) -> bool:
    """Whether a micro-batch runs forward and backward one piece after another."""
    return hasattr(model, "pieces")


def pieces(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterable[tuple[Any, bool]]:
    """What the model is called with, and whether it is the last piece of the micro-batch."""
    return model.pieces(batch)  # type: ignore[operator]


def at_step(model: nn.Module, step: int, stop_step: int) -> frozenset[str]:
    """Tells a model with a schedule of its own where it is; the parameter groups that this step leaves alone."""
    if not hasattr(model, "at_step"):
        return frozenset()
    return model.at_step(step, stop_step)  # type: ignore[operator]


def at_validation(model: nn.Module, means: Mapping[str, float]) -> None:
    """Tells a model that goes by its validation loss what it was."""
    if hasattr(model, "at_validation"):
        model.at_validation(means)  # type: ignore[operator]


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """What the optimizer steps, and by which share of its rate and decay."""
    return model.parameter_groups()  # type: ignore[operator]
