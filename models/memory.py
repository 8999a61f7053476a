"""Bytes by counting: what autograd holds, and the most that was alive at once. No clock, no operating system."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def held_bytes(forward: Callable[[], Any], outside: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd saves in `forward`, without those of the tensors in `outside`.

    Blind to what activation checkpointing hides: see `peak_bytes`.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in outside}
    saved, alive = {}, []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another tensor could take its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors made inside `run` that were alive at once; scratch inside a kernel is not seen."""
    with _Alive() as alive:
        run()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows every storage that an operator returns until it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._add(storage)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self.now += size
        self._known[key] = weakref.ref(storage, gone)
