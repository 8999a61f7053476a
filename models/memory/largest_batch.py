"""The largest micro-batch that a family can meet: every example as long as the longest."""

from typing import Any

import torch
from torch import Tensor


def full_batch(reads: str, config: Any, rows: int, length: int) -> dict[str, Tensor]:
    """`rows` examples of `length` target units, in the form of docs/models.md, contents made up.

    reads: what the family reads (models/families/registry.py). Sources are as long as targets. The last source of a
    pair is one token short, for a batch with padding is what pairs almost always come in. Series miss nothing.
    """
    if reads == "series":
        ones = torch.ones(rows, length, config.channels, dtype=torch.bool)
        return {"values": torch.zeros(ones.shape), "observed": ones, "steps": ones[:, :, 0].clone()}
    batch = {name: torch.zeros(rows, length, dtype=torch.int64) for name in ("inputs", "targets")}
    if reads == "pairs":
        lengths = torch.full((rows,), length)
        lengths[-1] = max(1, length - 1)
        batch |= {"source": torch.zeros(rows, length, dtype=torch.int64), "source_lengths": lengths}
    return batch
