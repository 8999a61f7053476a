"""What models of pairs share if each side has an embedding table, or both have one."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.contract import PairModel
from reducible.models.layers.adapted_weights import adapted_weight


def require_one_vocabulary(config: Any) -> None:
    """Raises ValueError unless both sides have the same vocabulary, if they share a table."""
    if config.shared and config.source_vocabulary != config.vocabulary:
        raise ValueError(
            f"model.shared: one tokenizer has one vocabulary, not {config.source_vocabulary} and {config.vocabulary}"
        )


class PairTables(PairModel):
    """Makes no module itself: the order in which a family makes its parameters is its own, and what they start as."""

    config: Any
    """With the keys `dropout`, `shared` and `tied`."""
    embedding: nn.Embedding
    """Of the targets."""
    source_embedding: nn.Embedding | None
    """None: the targets' is the sources' too."""
    output: nn.Linear | None
    """None: the targets' table is the output layer."""

    def source_table(self) -> nn.Embedding:
        return self.embedding if self.source_embedding is None else self.source_embedding

    def output_table(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.output is None else adapted_weight(self.output)

    def tied_tables(self) -> Sequence[nn.Module]:
        return [self.embedding] if self.output is None else []

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers."""
        return bool(self.config.dropout > 0)

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
