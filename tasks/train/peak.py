"""The peak FLOP/s of a device, the denominator of MFU: known for GPUs, measured on a CPU."""

import time
from functools import cache

import torch

from reducible.models.memory.gpus import named_by_driver
from reducible.models.quantise.number_formats import DTYPES


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of one device; None if it is not known."""
    if device.type == "cuda":
        known = named_by_driver(torch.cuda.get_device_name(device))
        return None if known is None else known.peaks.get(precision)
    return _measured(precision, torch.get_num_threads())


@cache
def _measured(precision: str, threads: int, size: int = 512) -> float:
    """The fastest of several matrix products, with as many threads as training has."""
    a, b = (torch.ones(size, size, dtype=DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
