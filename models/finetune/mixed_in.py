"""Behaviour mixed into an existing module, which becomes an instance of a subclass of its own class."""

from functools import cache

from torch import nn


def mix_in(module: nn.Module, mixin: type) -> None:
    """Puts the mixin's methods before those of the module's class.

    It replaces the class of the instance, as torch's parametrize and fully_shard do, because no other way has both
    properties. First, isinstance(layer, nn.LSTM) stays true and parameters keep their names; a wrapper would rename
    them, also in every checkpoint. Second, properties, __getattr__ and super() work; attributes of the instance would
    not suffice, because Python looks these up in the class.
    """
    module.__class__ = _subclass(mixin, type(module))  # type: ignore[arg-type]


@cache
def _subclass(mixin: type, kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
