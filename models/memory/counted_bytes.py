"""Bytes by counting tensors: held by autograd, alive at once, or made in total. Independent of the operating system."""

import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def held_bytes(forward: Callable[[], Any], outside: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd saves in `forward`, without those of the tensors in `outside`.

    It does not see what activation checkpointing holds; `peak_bytes` does.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in outside}
    saved, alive = {}, []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # otherwise another tensor could get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors made inside `run` that were alive at once. It does not see scratch inside a kernel."""
    with Alive() as alive:
        run()
    return alive.peak


def made_bytes(run: Callable[[], Any]) -> int:
    """Bytes of all tensors made inside `run`, freed or not. They show a loop whose work is quadratic in time."""
    with Alive() as alive:
        run()
    return alive.total


class Alive(TorchDispatchMode):
    """Follows every storage that an operator returns until it is freed. Fake tensors have storages with sizes, too.

    scratch: (operator, arguments) -> bytes that a kernel uses while it runs and that no tensor shows.
    """

    def __init__(self, scratch: Callable[[Any, Any], int] = lambda operator, arguments: 0) -> None:
        super().__init__()
        self._scratch = scratch
        self.now = self.peak = self.total = 0
        self.history: list[int] = []
        """Bytes alive after each operator, its scratch included."""
        self._known: dict[int, weakref.ref[Any]] = {}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(func, args, result)
        return result

    def note(self, func: Any, args: Any, result: Any) -> None:
        """Follows what an operator returned: for another mode, which runs the operator and has this one inactive."""
        if _gives_views(func):
            return
        for leaf in result if isinstance(result, tuple | list) else (result,):
            for tensor in leaf if isinstance(leaf, tuple | list) else (leaf,):
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        self.history.append(self.now + self._scratch(func, args))
        self.peak = max(self.peak, self.history[-1])

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of the distinct storages of tensors that were made inside and are alive."""
        found = {tensor.untyped_storage()._cdata for tensor in tensors} & self._known.keys()
        return sum(self._sizes[key] for key in found)

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= self._sizes.pop(key)
            del self._known[key]

        self.now += size
        self.total += size
        self._known[key], self._sizes[key] = weakref.ref(storage, gone), size


@cache
def _gives_views(operator: Any) -> bool:
    """Whether an operator returns memory that existed before."""
    return any(returned.alias_info is not None for returned in operator._schema.returns)
