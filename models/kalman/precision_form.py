"""The linear-Gaussian model in precision form: likelihood, posterior moments and gradient with no loop over time.

The posterior of z_1 .. z_T given a series is Gaussian, and its precision is block-tridiagonal
(models/kalman/block_tridiagonal.py). With m its mean, log p(x) = log p(x, m) - log p(m | x). torch, float64, any
device, batches of series, any missing values; the noise of the transition and of the emission must have full rank.
Names and axes as in models/kalman/filter.py: A transition, Q = B B', C emission, R = D D'; G groups of series that miss
the same values, M different sets of channels that a step misses.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reducible.models.kalman.block_tridiagonal import BlockCholesky, block_cholesky, cholesky_or_nan
from reducible.models.kalman.filter import LinearGaussian

LOG_2_PI = math.log(2 * math.pi)


class Parameters(NamedTuple):
    """A LinearGaussian in torch and float64, through which gradients pass. It has Cholesky factors of the noises.

    The factors are lower triangular with a positive diagonal.
    """

    transition: Tensor
    transition_factor: Tensor
    """Cholesky factor of Q."""
    emission: Tensor
    emission_factor: Tensor
    """Cholesky factor of R."""
    initial_mean: Tensor
    initial_factor: Tensor
    """Cholesky factor of the covariance of z_1."""
    latent_offset: Tensor
    emission_offset: Tensor


def parameters_of(model: LinearGaussian) -> Parameters:
    """The same model in torch. Raises ValueError if a covariance does not have full rank and thus no inverse."""
    factors = {}
    for name in ("transition_covariance", "emission_covariance", "initial_covariance"):
        try:
            factors[name] = torch.from_numpy(np.linalg.cholesky(getattr(model, name)))
        except np.linalg.LinAlgError:
            raise ValueError(
                f"{name}: does not have full rank; models/kalman/filter.py accepts that, the precision form does not"
            ) from None
    return Parameters(
        torch.tensor(model.transition),
        factors["transition_covariance"],
        torch.tensor(model.emission),
        factors["emission_covariance"],
        torch.tensor(model.initial_mean),
        factors["initial_covariance"],
        torch.tensor(model.latent_offset),
        torch.tensor(model.emission_offset),
    )


def model_of(parameters: Parameters) -> LinearGaussian:
    """The same model in NumPy."""
    A, B, C, D, mean, initial, b, c = (tensor.detach().cpu().numpy() for tensor in parameters)
    return LinearGaussian(A, B, C, D, mean, initial @ initial.T, b, c)


def factor_of(packed: Tensor) -> Tensor:
    """The lower triangular matrix whose rows are packed one after another, with the logarithms of its diagonal."""
    size = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    rows, columns = torch.tril_indices(size, size, device=packed.device)
    matrix = packed.new_zeros(size, size).index_put((rows, columns), packed)
    return matrix.tril(-1) + matrix.diagonal().exp().diag_embed()


def packed_of(factor: Tensor) -> Tensor:
    """The inverse of `factor_of`."""
    rows, columns = torch.tril_indices(*factor.shape, device=factor.device)
    return (factor.tril(-1) + factor.diagonal().log().diag_embed())[rows, columns]


class Channels(NamedTuple):
    """The noise of the observed channels, for each of the M sets of observed channels that occur."""

    set_BT: Tensor
    """The set of each step."""
    precision_MCC: Tensor
    """The precision of the observed channels' noise; 0 for the others."""
    log_determinant_M: Tensor
    """The log determinant of the covariance of the observed channels' noise."""
    count_M: Tensor
    """The number of observed channels."""


@dataclass(frozen=True)
class Posterior:
    """p(z | x) of every series."""

    parameters: Parameters
    x_BTC: Tensor
    """Values, 0 where missing."""
    channels: Channels
    group_B: Tensor
    series_G: Tensor
    """One series of each group."""
    factor: BlockCholesky
    """Of each group's precision."""
    mean_BTD: Tensor
    log_likelihood_B: Tensor
    """log p(x) in nats, exact."""


def posterior(parameters: Parameters, x_BTC: Tensor, observed_BTC: Tensor) -> Posterior:
    """The exact posterior of every series; NaN if a covariance is not positive definite."""
    A, C = parameters.transition, parameters.emission
    x_BTC = torch.where(observed_BTC, x_BTC.double(), 0.0)
    B, T, _ = x_BTC.shape
    D = len(A)
    channels = _channels(parameters, observed_BTC)
    group_B, series_G = _groups(channels.set_BT)

    half_DD = torch.linalg.solve_triangular(parameters.transition_factor, A, upper=False)
    QA_DD = torch.linalg.solve_triangular(parameters.transition_factor.mT, half_DD, upper=True)
    inverse_Q_DD = torch.cholesky_inverse(parameters.transition_factor)
    inverse_P_DD = torch.cholesky_inverse(parameters.initial_factor)
    score_MDC = C.mT @ channels.precision_MCC
    information_MDD = score_MDC @ C

    prior_TDD = inverse_Q_DD.expand(T, D, D).clone()
    prior_TDD[0] = inverse_P_DD
    prior_TDD[:-1] += half_DD.mT @ half_DD
    diagonal_GTDD = prior_TDD + information_MDD[channels.set_BT[series_G]]
    factor = block_cholesky(diagonal_GTDD, (-QA_DD).expand(len(series_G), T - 1, D, D))

    pull_TD = (inverse_Q_DD @ parameters.latent_offset).expand(T, D).clone()
    pull_TD[0] = inverse_P_DD @ parameters.initial_mean
    pull_TD[:-1] -= QA_DD.mT @ parameters.latent_offset
    h_BTD = pull_TD + _by_set(score_MDC, channels.set_BT, x_BTC - parameters.emission_offset)
    mean_BTD = _solve(factor, group_B, h_BTD)

    rest_BTC = x_BTC - parameters.emission_offset - mean_BTD @ C.mT
    square_BT = (rest_BTC * _by_set(channels.precision_MCC, channels.set_BT, rest_BTC)).sum(-1)
    observed_B = ((channels.count_M * LOG_2_PI + channels.log_determinant_M)[channels.set_BT] + square_BT).sum(1)
    moved_BTD = mean_BTD[:, 1:] - mean_BTD[:, :-1] @ A.mT - parameters.latent_offset
    moved_B = _squares(parameters.transition_factor, moved_BTD) + _squares(
        parameters.initial_factor, mean_BTD[:, :1] - parameters.initial_mean
    )
    # The log 2 pi of latents stands in log p(x, m) and in log p(m | x) alike.
    fixed = (T - 1) * _log_determinant(parameters.transition_factor) + _log_determinant(parameters.initial_factor)
    log_likelihood_B = -0.5 * (observed_B + moved_B + fixed + factor.log_determinant()[group_B])
    return Posterior(parameters, x_BTC, channels, group_B, series_G, factor, mean_BTD, log_likelihood_B)


def _channels(parameters: Parameters, observed_BTC: Tensor) -> Channels:
    """The different sets of observed channels and their noise."""
    B, T, C = observed_BTC.shape
    # A set as a number, 32 channels at a time: numbers sort much faster than rows.
    code_BT = torch.zeros(B, T, dtype=torch.int64, device=observed_BTC.device)
    for start in range(0, C, 32):
        part_BTC = observed_BTC[:, :, start : start + 32].long()
        bits_C = 2 ** torch.arange(part_BTC.shape[2], device=observed_BTC.device)
        word_BT = torch.unique((part_BTC * bits_C).sum(-1), return_inverse=True)[1]
        code_BT = torch.unique(code_BT * (B * T) + word_BT, return_inverse=True)[1]
    sets = int(code_BT.max()) + 1
    example_M = torch.empty(sets, dtype=torch.int64, device=code_BT.device)
    example_M[code_BT.flatten()] = torch.arange(B * T, device=code_BT.device)
    seen_MC = observed_BTC.reshape(B * T, C)[example_M].double()

    R_CC = parameters.emission_factor @ parameters.emission_factor.mT
    both_MCC = seen_MC[:, :, None] * seen_MC[:, None, :]
    factor_MCC = cholesky_or_nan(R_CC * both_MCC + torch.diag_embed(1 - seen_MC))
    return Channels(
        code_BT, torch.cholesky_inverse(factor_MCC) * both_MCC, _log_determinant(factor_MCC), seen_MC.sum(1)
    )


def _groups(set_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The group of every series, and one series of each group."""
    _, group_B = torch.unique(set_BT, dim=0, return_inverse=True)
    series_G = torch.empty(int(group_B.max()) + 1, dtype=torch.int64, device=set_BT.device)
    series_G[group_B] = torch.arange(len(set_BT), device=set_BT.device)
    return group_B, series_G


def _solve(factor: BlockCholesky, group_B: Tensor, h_BTD: Tensor) -> Tensor:
    """Each series against the precision of its group."""
    if len(factor.last_GDD) == 1:
        return factor.solve(h_BTD.permute(1, 2, 0)[None])[0].permute(2, 0, 1)
    return factor.select(group_B).solve(h_BTD[..., None])[..., 0]


def _by_set(M_MIJ: Tensor, set_BT: Tensor, v_BTJ: Tensor) -> Tensor:
    """(B, T, I): the matrix of each step's set of channels times its vector."""
    if len(M_MIJ) == 1:
        return v_BTJ @ M_MIJ[0].mT
    return (M_MIJ[set_BT] @ v_BTJ[..., None])[..., 0]


def _squares(factor_DD: Tensor, v_BTD: Tensor) -> Tensor:
    """(B,) sum over steps of v' (L L')^-1 v."""
    white_DN = torch.linalg.solve_triangular(factor_DD, v_BTD.reshape(-1, v_BTD.shape[-1]).mT, upper=False)
    return white_DN.square().sum(0).view(v_BTD.shape[:2]).sum(1)


def _log_determinant(factor: Tensor) -> Tensor:
    """log |L L'|."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


# Moments ----------------------------------------------------------------------------------------------------------


class Regression(NamedTuple):
    """Expected sums for the regression y = W x + noise over a batch. The last entry of x is 1."""

    yy: Tensor
    yx: Tensor
    xx: Tensor
    terms: float
    """The number of terms of the sums."""

    def spread(self, weights: Tensor) -> Tensor:
        """E[sum of (y - W x)(y - W x)']."""
        cross = self.yx @ weights.mT
        return self.yy - cross - cross.mT + weights @ self.xx @ weights.mT

    def expected_log_density(self, weights: Tensor, factor: Tensor) -> Tensor:
        """E[sum of log N(y; W x, L L')], a scalar."""
        trace = torch.cholesky_solve(self.spread(weights), factor).diagonal().sum()
        return -0.5 * (self.terms * (len(factor) * LOG_2_PI + _log_determinant(factor)) + trace)


class Moments(NamedTuple):
    """Sufficient statistics, expected under the posterior. Missing values count as latent."""

    initial: Regression
    """z_1 on (1,)."""
    transition: Regression
    """z_t on (z_{t-1}, 1)."""
    emission: Regression
    """x_t on (z_t, 1)."""


def moments(of: Posterior) -> Moments:
    """The E-step (Shumway and Stoffer 1982)."""
    mean_BTD = of.mean_BTD
    B, T, D = mean_BTD.shape
    covariance_GTDD, lag_GTDD = of.factor.inverse_blocks()
    weight_G = torch.bincount(of.group_B, minlength=len(of.series_G)).double()
    covariance_TDD = _weighted(weight_G, covariance_GTDD)
    second = covariance_TDD.sum(0)
    flat_ND = mean_BTD.reshape(-1, D)
    first_BD, last_BD = mean_BTD[:, 0], mean_BTD[:, -1]
    zz = second + flat_ND.mT @ flat_ND
    z = flat_ND.sum(0)
    zz_first, zz_last = covariance_TDD[0] + first_BD.mT @ first_BD, covariance_TDD[-1] + last_BD.mT @ last_BD
    z_later = mean_BTD[:, 1:].reshape(-1, D)
    z_earlier = mean_BTD[:, :-1].reshape(-1, D)
    lag = _weighted(weight_G, lag_GTDD).sum(0) + z_later.mT @ z_earlier
    count = B * (T - 1)
    transition = Regression(
        zz - zz_first,
        torch.cat([lag, z_later.sum(0)[:, None]], 1),
        _augmented(zz - zz_last, z_earlier.sum(0), count),
        count,
    )
    initial = Regression(zz_first, first_BD.sum(0)[:, None], zz.new_tensor([[B]]), B)
    return Moments(initial, transition, _emission_moments(of, covariance_GTDD, zz, z))


def _emission_moments(of: Posterior, covariance_GTDD: Tensor, zz: Tensor, z: Tensor) -> Regression:
    """The regression of x on z. Missing channels follow their distribution given z and the observed ones:

    x = c + C z + K (x_o - c - C z) + noise. K = R R_oo^-1 with 0 for missing columns; its rows of observed channels are
    those of the identity.
    """
    C, offset = of.parameters.emission, of.parameters.emission_offset
    channels = of.channels
    B, T, _ = of.x_BTC.shape
    count = B * T
    xx = _augmented(zz, z, count)
    if len(channels.count_M) == 1 and int(channels.count_M[0]) == len(C):
        x_NC = of.x_BTC.reshape(count, -1)
        z_ND = of.mean_BTD.reshape(count, -1)
        return Regression(x_NC.mT @ x_NC, torch.cat([x_NC.mT @ z_ND, x_NC.sum(0)[:, None]], 1), xx, count)
    R = of.parameters.emission_factor @ of.parameters.emission_factor.mT
    K_MCC = R @ channels.precision_MCC
    H_MCD = C - K_MCC @ C
    fitted_BTC = offset + of.mean_BTD @ C.mT
    x_NC = (fitted_BTC + _by_set(K_MCC, channels.set_BT, of.x_BTC - fitted_BTC)).reshape(count, -1)
    z_ND = of.mean_BTD.reshape(count, -1)
    set_N = channels.set_BT.flatten()
    S_MDD = torch.zeros(len(K_MCC), *zz.shape, dtype=zz.dtype, device=zz.device)
    S_MDD.index_add_(0, set_N, covariance_GTDD[of.group_B].reshape(count, *zz.shape))
    n_M = torch.bincount(set_N, minlength=len(K_MCC)).double()
    HS_MCD = H_MCD @ S_MDD
    yy = x_NC.mT @ x_NC + (HS_MCD @ H_MCD.mT).sum(0) + _weighted(n_M, R - K_MCC @ R)
    yx = x_NC.mT @ z_ND + HS_MCD.sum(0)
    return Regression(yy, torch.cat([yx, x_NC.sum(0)[:, None]], 1), xx, count)


def _weighted(weight_G: Tensor, matrices: Tensor) -> Tensor:
    """Their weighted sum over the first axis."""
    return (weight_G[None] @ matrices.reshape(len(weight_G), -1)).view(matrices.shape[1:])


def _augmented(xx: Tensor, x: Tensor, count: float) -> Tensor:
    """Moments of (x, 1)."""
    upper = torch.cat([xx, x[:, None]], 1)
    return torch.cat([upper, torch.cat([x, x.new_tensor([count])])[None]], 0)


def expected_log_likelihood(parameters: Parameters, given: Moments) -> Tensor:
    """E[log p(x, z)] under the posterior that made the moments, a scalar.

    Its gradient at the parameters of that posterior is the gradient of log p(x) (Fisher's identity; Cappe, Moulines
    and Ryden 2005, 10.1.2), so the posterior need not be differentiated.
    """
    return (
        given.initial.expected_log_density(parameters.initial_mean[:, None], parameters.initial_factor)
        + given.transition.expected_log_density(
            torch.cat([parameters.transition, parameters.latent_offset[:, None]], 1), parameters.transition_factor
        )
        + given.emission.expected_log_density(
            torch.cat([parameters.emission, parameters.emission_offset[:, None]], 1), parameters.emission_factor
        )
    )
