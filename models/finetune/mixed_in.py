"""Behaviour mixed into a module that exists already: it becomes an instance of a subclass of its own class."""

from functools import cache

from torch import nn


def mix_in(module: nn.Module, mixin: type) -> None:
    """Put the mixin's methods before those of the module's class.

    The class of the instance is exchanged, as torch's parametrize and fully_shard do it, because nothing else keeps
    both promises. The module stays what it was, isinstance(layer, nn.LSTM), with the same parameter names: a wrapper
    would rename them, and with them every checkpoint. Properties, __getattr__ and super() work: attributes of the
    instance would not do, for Python looks these up in the class.
    """
    module.__class__ = _subclass(mixin, type(module))  # type: ignore[arg-type]


@cache
def _subclass(mixin: type, kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
