"""Estimators for models with one Gaussian latent variable per example and the prior z ~ N(0, I).

They see a model through two methods (`LatentVariableModel`), so that tests hold them to a linear-Gaussian model whose
marginal likelihood, posterior and mutual information are known exactly. Everything is in nats per example.
Axes: K samples, B or N examples, Z latent dimensions.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from reducible.models.layers.gaussian import Gaussian, log_standard_normal

ACTIVE = 0.01
"""Variance of its posterior mean over the data above which a dimension is active (Burda et al. 2016)."""

PAIRS_AT_ONCE = 2**22
"""Densities held at a time where every sample meets every posterior."""


class LatentVariableModel(Protocol):
    def posterior(self, batch: dict[str, Tensor]) -> Gaussian:
        """q(z | x) of every example."""
        ...

    def log_likelihood(self, batch: dict[str, Tensor], z_KBZ: Tensor) -> Tensor:
        """(K, B): log p(x | z)."""
        ...


class Importance(NamedTuple):
    """The estimate for each example, float64."""

    log_likelihood_B: Tensor
    """log of the mean importance weight: below log p(x) on average, and nearer the larger K (Burda et al. 2016)."""
    effective_B: Tensor
    """Kish's effective number of samples, 1 to K; near 1 the estimate rests on one lucky sample."""


@torch.no_grad()
def importance_weighted(model: LatentVariableModel, batch: dict[str, Tensor], samples: int, at_once: int) -> Importance:
    """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k ~ q (Burda et al. 2016, equation 8), `at_once` samples held."""
    q = model.posterior(batch)
    total_B = torch.full((len(q.mean_BZ),), -torch.inf, dtype=torch.float64, device=q.mean_BZ.device)
    squares_B = total_B.clone()
    for start in range(0, samples, at_once):
        z_KBZ = q.sample(min(at_once, samples - start))
        weight_KB = (model.log_likelihood(batch, z_KBZ) + log_standard_normal(z_KBZ) - q.log_density(z_KBZ)).double()
        total_B = torch.logaddexp(total_B, weight_KB.logsumexp(0))
        squares_B = torch.logaddexp(squares_B, (2 * weight_KB).logsumexp(0))
    return Importance(total_B - math.log(samples), (2 * total_B - squares_B).exp())


class Information(NamedTuple):
    """The information of a sample of q(z|x) about which of N examples x it came from: each example's share, float64."""

    lower_N: Tensor
    """Mean over examples: at most log N, and on average at most the mutual information of x and z under q."""
    upper_N: Tensor
    """Leaves the example's own posterior out of the aggregate; on average at least that. Infinite for N = 1."""


@torch.no_grad()
def mutual_information(q: Gaussian, z_NZ: Tensor) -> Information:
    """I(x; z) under q from one z_i ~ q(z|x_i) for each example: mean of log q(z_i|x_i) - log q(z_i).

    The aggregate q(z) is the mean of the N posteriors (Hoffman and Johnson 2016; He et al. 2019). With the example's
    own posterior in it the estimate is exact on average where the N examples are the whole data, but cannot pass log N;
    as an estimate for more data of the same kind it is a lower bound, and without the own posterior an upper bound
    (Poole et al. 2019, section 2.3).
    """
    mean_NZ, log_sigma_NZ, z_NZ = q.mean_BZ.double(), q.log_sigma_BZ.double(), z_NZ.double()
    precision_NZ = torch.exp(-2 * log_sigma_NZ)
    constant_N = (log_sigma_NZ + 0.5 * mean_NZ.square() * precision_NZ).sum(-1)
    count = len(z_NZ)
    lower, upper = [], []
    for rows in torch.arange(count, device=z_NZ.device).split(max(1, PAIRS_AT_ONCE // max(1, count))):
        z_RZ = z_NZ[rows]
        # log q(z_i | x_j) for every pair, without the constant that all share.
        density_RN = z_RZ @ (mean_NZ * precision_NZ).T - 0.5 * z_RZ.square() @ precision_NZ.T - constant_N
        own_R1 = density_RN.gather(1, rows[:, None])
        lower.append(own_R1[:, 0] - density_RN.logsumexp(1) + math.log(max(1, count)))
        others_RN = density_RN.scatter(1, rows[:, None], -torch.inf)
        upper.append(own_R1[:, 0] - others_RN.logsumexp(1) + math.log(max(1, count - 1)))
    return Information(torch.cat(lower), torch.cat(upper))


def active_units(mean_NZ: Tensor) -> Tensor:
    """(Z,) bool: dimensions whose posterior mean varies over the data by more than ACTIVE (Burda et al. 2016)."""
    return mean_NZ.double().var(0) > ACTIVE
