"""Normal distributions with independent coordinates: deviations from any number, densities, divergences."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_DEVIATION = 1e-5
"""Keeps the logarithm of a deviation finite."""

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


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
    return _log_density((x - mean) / deviation, deviation.log())


def gaussian_kl(mean: Tensor, deviation: Tensor, prior_mean: Tensor, prior_deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(prior_mean, prior_deviation^2)) in nats, number by number."""
    ratio = deviation / prior_deviation
    return _divergence((mean - wide(prior_mean)) / prior_deviation, ratio.square(), ratio.log())


class Gaussian(NamedTuple):
    """Normal distributions of latent vectors, one for each example, with deviations by their logarithms."""

    mean_BZ: Tensor
    log_sigma_BZ: Tensor

    def sample(self, count: int) -> Tensor:
        """(K, B, Z) by mean + sigma x noise, so that gradients reach both; noise from torch's default generator."""
        noise_KBZ = torch.randn((count, *self.mean_BZ.shape), dtype=self.mean_BZ.dtype, device=self.mean_BZ.device)
        return self.mean_BZ + self.log_sigma_BZ.exp() * noise_KBZ

    def log_density(self, z_KBZ: Tensor) -> Tensor:
        """(K, B): log q(z | x)."""
        return _log_density((z_KBZ - self.mean_BZ) * torch.exp(-self.log_sigma_BZ), self.log_sigma_BZ).sum(-1)

    def divergence(self) -> Tensor:
        """(B, Z): KL(q(z_j | x) || N(0, 1)) of every dimension, in closed form (Kingma and Welling 2014)."""
        return _divergence(self.mean_BZ, (2 * self.log_sigma_BZ).exp(), self.log_sigma_BZ)


def log_standard_normal(z_KBZ: Tensor) -> Tensor:
    """(K, B): log N(z; 0, I)."""
    return -(0.5 * z_KBZ.square() + _HALF_LOG_TWO_PI).sum(-1)


def _log_density(scaled: Tensor, log_deviation: Tensor) -> Tensor:
    """From the distance to the mean in deviations."""
    return -0.5 * scaled.square() - log_deviation - _HALF_LOG_TWO_PI


def _divergence(distance: Tensor, variance_ratio: Tensor, log_ratio: Tensor) -> Tensor:
    """From the distance of the means in deviations of the second, and the ratio of the first deviation to it."""
    return 0.5 * (variance_ratio + distance.square() - 1) - log_ratio
