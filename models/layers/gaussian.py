"""Normal distributions with independent coordinates: deviations from any number, densities, divergences."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_DEVIATION = 1e-5
"""Keeps the logarithm of a deviation finite."""


def wide(x: Tensor) -> Tensor:
    """At least fp32: means, deviations and nats are not for half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positive(raw: Tensor) -> Tensor:
    """Any number as a deviation."""
    return F.softplus(wide(raw)) + SMALLEST_DEVIATION


def raw_of(deviation: float) -> float:
    """The number that `positive` turns into this deviation."""
    return math.log(math.expm1(deviation - SMALLEST_DEVIATION))


def gaussian_log_prob(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log N(x; mean, deviation^2) in nats, number by number."""
    return -0.5 * ((x - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, deviation: Tensor, prior_mean: Tensor, prior_deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(prior_mean, prior_deviation^2)) in nats, number by number."""
    ratio = deviation / prior_deviation
    distance = (mean - wide(prior_mean)) / prior_deviation
    return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()
