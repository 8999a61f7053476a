"""What a batch holds: one row for each kind. docs/models.md lists the tensors.

B rows, T target positions, S source positions, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reducible.models.cost.ledger import Lengths


@dataclass(frozen=True)
class Reads:
    """A kind of batch, and what follows from it for every model that reads it."""

    name: str
    """What messages say that a family reads."""
    decided: tuple[str, ...]
    """Keys of a model's configuration that the data decide, not the recipe."""
    full_batch: Callable[[Any, int, int], dict[str, Tensor]]
    """(config, rows, length): the largest batch, every example as long as the longest, contents made up."""
    sources: bool = False
    """Whether every target has a source."""
    packed: bool = False
    """Whether every example has the same length, so that a step is a whole number of them."""

    def lengths(self, sequence: int) -> Lengths:
        """Of examples that all have so many target units, and as many of the source if there is one."""
        return Lengths.fixed(sequence, sequence if self.sources else 0)


def _tokens(config: Any, rows: int, length: int) -> dict[str, Tensor]:
    return {name: torch.zeros(rows, length, dtype=torch.int64) for name in ("inputs", "targets")}


def _pairs(config: Any, rows: int, length: int) -> dict[str, Tensor]:
    """The last source is one token short: a batch with padding is what pairs almost always come in."""
    lengths = torch.full((rows,), length)
    lengths[-1] = max(1, length - 1)
    source = {"source": torch.zeros(rows, length, dtype=torch.int64), "source_lengths": lengths}
    return _tokens(config, rows, length) | source


def _series(config: Any, rows: int, length: int) -> dict[str, Tensor]:
    """Nothing is missing."""
    ones = torch.ones(rows, length, config.channels, dtype=torch.bool)
    return {"values": torch.zeros(ones.shape), "observed": ones, "steps": ones[:, :, 0].clone()}


TEXT = Reads("text", ("vocabulary",), _tokens, packed=True)
"""inputs, targets (B, T) int64: windows of packed documents; with mask_documents also documents (B, T) int64."""
SENTENCES = Reads("sentences", ("vocabulary",), _tokens)
"""inputs, targets (B, T) int64: one document a row, the separator first, the separator as end, then padding."""
PAIRS = Reads("pairs", ("source_vocabulary", "vocabulary", "shared"), _pairs, sources=True)
"""source (B, S) int64 with its end, source_lengths (B,) int64, and inputs, targets (B, T) as for sentences."""
SERIES = Reads("series", ("channels",), _series)
"""values (B, T, C) float, observed (B, T, C) bool: false if missing or padded, steps (B, T) bool: false if padded."""

BATCHES: dict[str, Reads] = {row.name: row for row in (TEXT, SENTENCES, PAIRS, SERIES)}
