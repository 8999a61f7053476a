"""The row of models/batches.py: what a batch of grids holds."""

from typing import Any

import torch
from torch import Tensor

from reducible.models.batches import Reads


def _grids(config: Any, rows: int, length: int) -> dict[str, Tensor]:
    return {"caption": torch.zeros(rows, dtype=torch.int64), "pixels": torch.zeros(rows, length, dtype=torch.int64)}


GRIDS = Reads("grids", ("captions", "pixels", "symbols"), _grids, packed=True)
"""caption (B,) int64, pixels (B, T) int64 row by row: every grid has as many."""
