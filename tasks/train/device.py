"""What training asks of its device: whether it is fast enough for the precision, and how much memory was used."""

import os
from pathlib import Path

import torch

from reducible.tasks.errors import UserError


def refuse_slow_precision(precision: str, device: torch.device) -> None:
    """Refuses bf16 or fp16 on hardware without it, because it would be 60 times slower than fp32."""
    if precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError("train.precision: this CPU has no bf16 (no AVX-512), where it is 60 times slower; use fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"train.precision: {torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")
    if precision == "fp16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UserError(
            "train.precision: this CPU has no fp16 (no AVX-512 FP16), where it is 60 times slower; use fp32"
        )


def memory(device: torch.device) -> dict[str, float]:
    """MiB: the most that the GPU's allocator held, or this process's anonymous memory (RSS counts mapped data too)."""
    if device.type == "cuda":
        return {"memory/peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    for line in Path("/proc/self/status").read_text().splitlines() if os.path.exists("/proc/self/status") else ():
        if line.startswith("RssAnon:"):
            return {"memory/anonymous_mib": int(line.split()[1]) / 1024}
    return {}
