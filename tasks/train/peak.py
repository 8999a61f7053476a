"""The FLOP/s that a device could do at most: the denominator of MFU. Known for GPUs, measured on a CPU."""

import time
from functools import cache

import torch

# Dense tensor-core peaks of the vendors' data sheets, FLOP/s: name part -> (bf16, fp32 without tf32).
KNOWN = {
    "H200": (989.4e12, 66.9e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100": (112e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of one device, None where nobody knows."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peaks[precision == "fp32"] for part, peaks in KNOWN.items() if part in name), None)
    return _measured(precision, torch.get_num_threads())


@cache
def _measured(precision: str, threads: int, size: int = 512) -> float:
    """The best of several matrix products with the threads that training has."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
