"""The kind of device that a tensor's work is for; code asks it if it takes another path on a GPU than on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_rehearsed: ContextVar[str | None] = ContextVar("rehearsed", default=None)


def device_kind(tensor: Tensor) -> str:
    """ "cpu" or "cuda": the tensor's own, or the one that a step is rehearsed for (memory/rehearsed_step.py)."""
    return _rehearsed.get() or tensor.device.type


def rehearsing() -> bool:
    """Whether a step is rehearsed: nothing is computed, and what is counted is the same on every machine."""
    return _rehearsed.get() is not None


@contextmanager
def rehearsed_for(kind: str) -> Iterator[None]:
    """Inside, tensors count as being on that kind of device, which this machine need not have."""
    token = _rehearsed.set(kind)
    try:
        yield
    finally:
        _rehearsed.reset(token)
