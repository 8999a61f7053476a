"""What every family returns: a sum of nats and the count of target units, never an average (contract 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""A target with this value is no target: it adds neither nats nor units."""


class Unsayable(ValueError):
    """The data hold a value that the model gives no probability."""


class Loss(NamedTuple):
    """Of one batch; a step adds up nats and units over micro-batches and ranks and divides once."""

    nats: Tensor
    """Scalar fp32: the sum of -log p(target) over the target units; backward starts here."""
    units: Tensor
    """Scalar int64: how many target units the sum runs over."""
    parts: dict[str, Tensor]
    """Further sums by name, for families whose loss has several terms; empty here."""


def total_of(losses: Sequence[Loss]) -> Loss:
    """The loss of several parts of one batch together."""
    first, *rest = losses
    for loss in rest:
        parts = {name: part + loss.parts[name] for name, part in first.parts.items()}
        first = Loss(first.nats + loss.nats, first.units + loss.units, parts)
    return first


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Loss:
    """Sum of nats of the targets, in fp32 whatever the dtype of the logits."""
    nats = F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return Loss(nats, (targets_BT != IGNORE).sum(), {})
