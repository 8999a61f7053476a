"""What every family returns: a sum of nats and the count of target units, never an average (contract 1)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""A target with this value is no target: it adds neither nats nor units."""


class Unsayable(ValueError):
    """The data hold a value that the model gives no probability."""


class BrokenContract(ValueError):
    """A family does otherwise than models/contract.py says: what, in a few words."""


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


def broken_loss(loss: object) -> str | None:
    """What is wrong with that as the result of forward, in a few words; None if nothing is."""
    if not isinstance(loss, Loss):
        return f"forward returns {_described(loss)}, and must return a Loss: Loss(nats, units, parts) of models/loss.py"
    if not _is_sum(loss.nats) or loss.nats.dtype != torch.float32:
        return (
            f"forward returns nats that are {_described(loss.nats)}, and must be one fp32 number: their sum in .float()"
        )
    if not _is_sum(loss.units) or loss.units.is_floating_point() or loss.units.is_complex():
        return (
            f"forward returns units that are {_described(loss.units)}, and must be one whole number, such as mask.sum()"
        )
    if not isinstance(loss.parts, Mapping):
        return f"forward returns parts that are {_described(loss.parts)}, and must be a dict of sums by name, or {{}}"
    for name, part in loss.parts.items():
        if not _is_sum(part):
            return f"forward returns the part {name!r} that is {_described(part)}, and must be a tensor of one number"
    return None


def _is_sum(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} tensor of shape {tuple(value.shape)}" if value.ndim else f"one {kind} number in a tensor"
    return f"an object of type {type(value).__name__}"
