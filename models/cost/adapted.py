"""What fine-tuning with an adapter costs: the ledger's numbers, without the gradients that frozen weights do not get.

How much that spares depends on where the adapters are: below the first of them nothing flows back, and a matrix of a
recurrence is put together once a call, not once a unit. So it is counted, on a rehearsed step
(models/memory/rehearsed_step.py).
"""

from dataclasses import replace
from functools import cache
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from reducible.models.contract import Family, Model
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.finetune.lora import Adapter, add_adapter
from reducible.models.memory.rehearsed_step import rehearse

ROWS = 4
LONGEST = 64
"""Units rehearsed at most of an example whose length varies anyway."""


def adapted_cost(family: Family, config: Any, adapter: Adapter, lengths: Lengths) -> Cost:
    """The cost of training the adapter alone; parameters and forward are those of the whole model."""
    whole = family.cost(config, lengths)
    length = max(1, round(lengths.target))
    if not family.batch.packed:
        length = min(length, LONGEST)
    spared = _spared(family, config, adapter, length)
    return replace(whole, training_flops_per_unit=whole.training_flops_per_unit - spared)


@cache
def _spared(family: Family, config: Any, adapter: Adapter, length: int) -> float:
    """FLOPs a target unit of a step that trains everything, less those of one that trains the adapter."""

    def adapted() -> Model:
        model: Model = family.build(config).train()
        add_adapter(model, adapter)
        return model

    batch = family.batch.full_batch(config, ROWS, length)
    # Fused attention computes its scores a second time in backward, which the ledger does not count.
    with sdpa_kernel(SDPBackend.MATH):
        whole = rehearse(lambda: family.build(config).train(), batch)
        return (whole.flops - rehearse(adapted, batch).flops) / (ROWS * length)
