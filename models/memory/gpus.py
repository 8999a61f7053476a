"""The table of GPUs: memory and matrix speed from the vendors' data sheets."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    memory: float
    """Bytes, from the decimal gigabytes of the data sheet. The device has a few per cent more, which the driver, the
    libraries and gaps of the allocator use."""
    peaks: dict[str, float]
    """Dense FLOP/s by precision: fp32 without tf32, bf16 and fp16 with sums in fp32. One without tensor cores is
    left out."""


GPUS: dict[str, Gpu] = {
    "h200": Gpu(141e9, {"fp32": 66.9e12, "bf16": 989.4e12, "fp16": 989.4e12}),
    "h100": Gpu(80e9, {"fp32": 66.9e12, "bf16": 989.4e12, "fp16": 989.4e12}),
    "a100-80": Gpu(80e9, {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}),
    "a100-40": Gpu(40e9, {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}),
    "l40s": Gpu(48e9, {"fp32": 91.6e12, "bf16": 362e12, "fp16": 362e12}),
    "l4": Gpu(24e9, {"fp32": 30.3e12, "bf16": 121e12, "fp16": 121e12}),
    "a10": Gpu(24e9, {"fp32": 31.2e12, "bf16": 125e12, "fp16": 125e12}),
    "v100-pcie": Gpu(32e9, {"fp32": 14e12, "fp16": 112e12}),
    "v100": Gpu(32e9, {"fp32": 15.7e12, "fp16": 125e12}),
    "t4": Gpu(16e9, {"fp32": 8.1e12, "fp16": 65e12}),
}
"""The GPUs by name. A driver's name for a device contains one of these; more specific names come first. The driver's
name of an A100 does not tell its memory, only its speed."""

_IN_A_DRIVERS_NAME = {"a100-80": "a100", "a100-40": "a100"}


def gpu(name: str) -> Gpu:
    """The GPU of that name. Raises ValueError listing the known names."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"gpu {name!r}: unknown; {hint}known: {', '.join(GPUS)}")


def named_by_driver(name: str) -> Gpu | None:
    """The GPU that a driver calls by this name ("NVIDIA H100 80GB HBM3"); None if it is not in the table."""
    words = name.lower()
    return next((found for key, found in GPUS.items() if _IN_A_DRIVERS_NAME.get(key, key) in words), None)
