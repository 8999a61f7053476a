"""The ladder of sizes: the member of a family that is nearest to N parameters."""

import math
from collections.abc import Iterator
from typing import Any

from reducible.models.contract import Family
from reducible.models.cost.ledger import Lengths

WIDEST = 16384


def rungs() -> Iterator[int]:
    """Widths to choose from: steps of 2, soon of 4, then of about 1/16, in multiples that matrix products like."""
    width = 4
    while width <= WIDEST:
        yield width
        width += max(2 if width < 16 else 4, 2 ** int(math.log2(width) - 4))


def sized(family: Family, config: Any, parameters: float, lengths: Lengths, embeddings: bool = True) -> Any:
    """`config` scaled to the width whose parameter count (with or without embeddings) is nearest in ratio."""
    if not parameters >= 1:
        raise ValueError(f"sizes: {parameters!r} parameters must be at least 1")
    best, error = None, math.inf
    for width in rungs():
        candidate = config.scaled(width)
        cost = family.cost(candidate, lengths)
        count = cost.parameters if embeddings else cost.parameters_without_embeddings
        if abs(math.log(count / parameters)) > error:
            if count > parameters:
                break
            continue
        best, error = candidate, abs(math.log(count / parameters))
    return best
