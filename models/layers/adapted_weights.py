"""The weights of a layer with what its adapter adds, for code that reads them itself.

A layer that peft has wrapped shows its base's weights under the old names, or none. Reading those would leave the
adapter out silently.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from reducible.models.finetune.held_matrices import HoldsMatrices, made_again_in_backward


def adapted_weight(linear: nn.Module) -> Tensor:
    """The matrix (out, in) of nn.Linear.

    Raises:
        ValueError: an adapter drops inputs of the layer, which only the layer's own call can do.
    """
    layer: Any = linear
    if not hasattr(layer, "base_layer"):
        return layer.weight
    weight = adapted_weight(layer.base_layer)
    for name in _acting(layer):
        if getattr(layer.lora_dropout[name], "p", 0.0):
            raise ValueError(
                "adapter.dropout: must be 0 for a matrix that its model reads itself, such as an output table or the "
                "gates of a decoder with input feeding; or leave that matrix out of adapter.targets"
            )
        weight = weight + layer.get_delta_weight(name)
    return weight


@contextmanager
def adapted_matrices(linears: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """`adapted_weight` each, for operators called inside; made again in backward if a layer holds its matrix."""
    layers = list(linears)
    if any(isinstance(getattr(layer, "base_layer", layer), HoldsMatrices) for layer in layers):
        with made_again_in_backward([partial(adapted_weight, layer) for layer in layers]) as weights:
            yield weights
    else:
        yield [adapted_weight(layer) for layer in layers]


@contextmanager
def adapted_weights(
    recurrence: nn.Module, change: Callable[[str, Tensor], Tensor] = lambda name, weight: weight
) -> Iterator[list[Tensor]]:
    """All weights of nn.RNNBase in torch's order, each as `change(name, weight)`, for a call of its kernel inside.

    Those of layers that hold their matrices are made again in backward (models/finetune/held_matrices.py).
    """
    layer, updates = _unwrapped(recurrence)

    def make(name: str) -> Tensor:
        return change(name, sum((update for at, update in updates if at == name), getattr(layer, name)))

    makers = [partial(make, name) for names in layer._all_weights for name in names]
    if isinstance(layer, HoldsMatrices):
        with made_again_in_backward(makers) as weights:
            yield weights
    else:
        yield [make() for make in makers]


def _unwrapped(layer: Any) -> tuple[Any, list[tuple[str, Tensor]]]:
    """The recurrence itself and updates by parameter: peft wraps it once for every parameter that it adapts."""
    updates = []
    while hasattr(layer, "base_layer"):
        updates += [(layer.parameter_name, layer.get_delta_weight(name)) for name in _acting(layer)]
        layer = layer.base_layer
    return layer, updates


def _acting(layer: Any) -> list[str]:
    """Adapters in use that are not merged into the base."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]
