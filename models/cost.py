"""The ledger of cost: parameters, FLOPs and bytes by formula (contract 6)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one model costs; per unit means per target unit (for text: per token of a full sequence)."""

    parameters: int
    parameters_without_embeddings: int
    """Without the input table and, where it is separate, the output table."""
    forward_flops_per_unit: float
    training_flops_per_unit: float
    """Forward and backward, model FLOPs: what is computed a second time is not in here."""
