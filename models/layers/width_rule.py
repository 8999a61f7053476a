"""The width rule: learning rates found at one width hold at others (maximal update parameterisation).

Yang et al. 2022, "Tensor Programs V", table 8, for Adam. Relative to BASE_WIDTH:

    kind of parameter                initial deviation      learning rate      output
    embedding table                  EMBEDDING_DEVIATION    EMBEDDING_RATE     -
    hidden matrix (in and out grow)  1 / sqrt(fan in)       BASE_WIDTH/width   -
    logits (tied or untied)          as the embedding       EMBEDDING_RATE     times LOGIT_WIDTH/width
    vector (gain of a norm)          1                      1                  -

The recipe's learning rate is the one of hidden matrices at BASE_WIDTH. The constants were tried on a small grid (bytes,
300 steps of 512, width 32): deviation 0.3, logits 20 and rate 3 end at 2.17 nats a byte; 0.1, 64, 1 at 2.26; 0.02, 64,
1 at 2.43. A rate of 1 instead of 3 lets the best learning rate fall to nearly half from width 16 to 64.
Decoupled weight decay takes learning rate x decay off a weight in every step; dividing the decay of a hidden matrix
by its rate keeps that product, the time over which weights are forgotten, the same at every width (Wang and
Aitchison 2024). Attention divides its scores by the square root of the head's size, as everybody's does; the paper's
division by the size itself matters only where heads grow, and the ladder keeps their size nearly fixed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

BASE_WIDTH = 64
EMBEDDING_DEVIATION = 0.3
EMBEDDING_RATE = 3.0
LOGIT_WIDTH = 20


class ParameterGroup(NamedTuple):
    """Parameters that share a factor for the learning rate and one for weight decay."""

    name: str
    parameters: Sequence[Tensor]
    rate: float
    """Multiplies the recipe's learning rate."""
    decay: float
    """Multiplies the recipe's weight decay: 0 for anything but matrices."""


def hidden_rate(width: int) -> float:
    """What multiplies the recipe's learning rate for hidden matrices."""
    return BASE_WIDTH / width


def logit_scale(width: int) -> float:
    """What multiplies the logits."""
    return LOGIT_WIDTH / width


def width_groups(
    width: int,
    embeddings: Sequence[Tensor],
    matrices: Sequence[Tensor],
    vectors: Sequence[Tensor],
) -> list[ParameterGroup]:
    """A family's parameters by the kinds of the table above; kinds that it has none of are left out."""
    rate = hidden_rate(width)
    groups = [
        ParameterGroup("embeddings", embeddings, EMBEDDING_RATE, 1.0 / EMBEDDING_RATE),
        ParameterGroup("matrices", matrices, rate, 1.0 / rate),
        ParameterGroup("vectors", vectors, 1.0, 0.0),
    ]
    return [group for group in groups if group.parameters]


def adam_rule(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """For optimizers whose updates do not depend on the size of a gradient: the families' groups are made for them."""
    return list(groups)


def one_rate(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """No rule: every parameter has the recipe's learning rate, and every matrix its weight decay."""
    return [group._replace(rate=1.0, decay=1.0 if group.decay else 0.0) for group in groups]
