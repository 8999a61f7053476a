"""The linear-Gaussian state-space model in covariance form: exact likelihood, filter, smoother, forecasts.

    z_1 = initial_mean + N(0, initial_covariance)
    z_t = A z_{t-1} + b + B e_t          A transition, b latent_offset, B transition_noise
    x_t = C z_t + c + D psi_t            C emission, c emission_offset, D emission_noise

(models/kalman/model.py). NumPy, float64. Axes: B series, T steps, C channels, D latents, G groups of series that miss
the same values and share their covariances (models/kalman/gains.py). When these have converged (in complete data, after
some steps), the means follow a recurrence with constant coefficients, which needs no loop over time
(models/kalman/linear_recurrence.py).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from reducible.models.kalman.banded import banded_log_likelihood
from reducible.models.kalman.gains import FEW_STEPS, Gains, by_group, filter_gains, future_information, recur
from reducible.models.kalman.model import LinearGaussian, diffuse, stationary, symmetric

__all__ = [
    "Filtered",
    "Forecast",
    "LinearGaussian",
    "Smoothed",
    "diffuse",
    "forecast",
    "kalman_filter",
    "kalman_smoother",
    "log_likelihood",
    "stationary",
]


# Filter -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filtered:
    """What x_1 .. x_t say about z_t. Inside, time is the first axis, so that a step of all series is contiguous."""

    group_B: np.ndarray
    """Which group each series belongs to."""
    gains: Gains
    predicted_mean_TBD: np.ndarray
    """E[z_t | x_<t]."""
    innovation_TBC: np.ndarray
    """x_t - E[x_t | x_<t]; 0 where missing."""
    log_likelihood_BT: np.ndarray
    """log p(x_t | x_<t) of the observed values, in nats."""

    @cached_property
    def mean_TBD(self) -> np.ndarray:
        """E[z_t | x_<=t]."""
        return self.predicted_mean_TBD + by_group(self.gains.gain_GSDC, self.group_B, self.innovation_TBC)

    @property
    def mean_BTD(self) -> np.ndarray:
        """E[z_t | x_<=t]."""
        return self.mean_TBD.swapaxes(0, 1)

    @property
    def predicted_covariance_GTDD(self) -> np.ndarray:
        """Cov(z_t | x_<t)."""
        return self.gains.at_every_step(self.gains.predicted_GSDD)

    @property
    def covariance_GTDD(self) -> np.ndarray:
        """Cov(z_t | x_<=t)."""
        return self.gains.at_every_step(self.gains.filtered_GSDD)


def kalman_filter(model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None = None) -> Filtered:
    """Filters every series. `observed` is False where a value is missing. Without it, NaN is missing.

    Raises:
        ValueError: the values have another shape, or observations lack noise in some direction (no density).
    """
    x_TBC, observed_BTC = masked(model, x_BTC, observed_BTC)
    patterns_GTC, group_B = grouped(observed_BTC)
    complete = len(patterns_GTC) == 1 and patterns_GTC.all()
    gains = filter_gains(model, patterns_GTC)
    mean_TBD = _predicted_means(model, x_TBC, group_B, gains)
    innovation_TBC = x_TBC  # a copy, so it may be changed
    innovation_TBC -= by_group(gains.emission_GSCD, group_B, mean_TBD)
    if not complete:
        innovation_TBC[~observed_BTC.swapaxes(0, 1)] = 0.0
    weighted_TBC = by_group(gains.precision_GSCC, group_B, innovation_TBC)
    terms_BT = np.einsum("tbc,tbc->bt", innovation_TBC, weighted_TBC)
    terms_BT += gains.at_every_step(gains.log_determinant_GS)[group_B]
    terms_BT += math.log(2 * math.pi) * (model.channels if complete else observed_BTC.sum(2))
    terms_BT *= -0.5
    return Filtered(group_B, gains, mean_TBD, innovation_TBC, terms_BT)


def log_likelihood(
    model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None = None, skip: int = 0
) -> np.ndarray:
    """log p(x) in nats (B,), without the terms of the first `skip` steps (`loglikelihood_burn` of statsmodels).

    It uses the filter. For long series with gaps it uses the posterior's precision (models/kalman/banded.py) if that is
    accurate.
    """
    x_TBC, observed_BTC = masked(model, x_BTC, observed_BTC)
    if not skip and x_BTC.shape[1] > FEW_STEPS and not observed_BTC.all():
        found_B = banded_log_likelihood(model, x_TBC.swapaxes(0, 1), observed_BTC)
        if found_B is not None:
            return found_B
    return kalman_filter(model, x_BTC, observed_BTC).log_likelihood_BT[:, skip:].sum(1)


def _predicted_means(model: LinearGaussian, x_TBC: np.ndarray, group_B: np.ndarray, gains: Gains) -> np.ndarray:
    """E[z_t | x_<t]: a_{t+1} = A (I - K_t C) a_t + A K_t (x_t - c) + b; K_t is 0 for what is missing."""
    A = model.transition
    AK_GSDC = A @ gains.gain_GSDC
    F_GSDD = A - AK_GSDC @ gains.emission_GSCD
    u_TBD = by_group(AK_GSDC, group_B, x_TBC)
    u_TBD += model.latent_offset
    a_TBD = np.empty_like(u_TBD)
    a_TBD[0] = model.initial_mean
    recur(F_GSDD, group_B, u_TBD[:-1], a_TBD[0], a_TBD[1:])
    return a_TBD


# Smoother ---------------------------------------------------------------------------------------------------------


class Smoothed(NamedTuple):
    """What a whole series says about each z_t."""

    group_B: np.ndarray
    mean_BTD: np.ndarray
    covariance_GTDD: np.ndarray
    lag_GTDD: np.ndarray
    """Cov(z_t, z_{t-1}); 0 at the first step."""


def kalman_smoother(model: LinearGaussian, filtered: Filtered) -> Smoothed:
    """The backward pass of de Jong (1989). It inverts no covariance of latents, so latents may move without noise.

    r_t and N_t are what the values after t say about z_{t+1}: r_{t-1} = C' S^-1 v_t + L_t' r_t and
    N_{t-1} = C' S^-1 C + L_t' N_t L_t with L_t = A (I - K_t C), r_T = 0, N_T = 0. They are applied to the filtered
    moments, not to the predicted ones, so that an initial variance of 1e7 never cancels.
    """
    A, gains, group_B = model.transition, filtered.gains, filtered.group_B
    score_GSDC = gains.emission_GSCD.swapaxes(2, 3) @ gains.precision_GSCC
    information_GSDD = score_GSDC @ gains.emission_GSCD
    L_GSDD = A - A @ gains.gain_GSDC @ gains.emission_GSCD
    u_TBD = by_group(score_GSDC, group_B, filtered.innovation_TBC)
    r_TBD = np.zeros_like(u_TBD)
    T, B, D = u_TBD.shape
    G, S, _, _ = L_GSDD.shape

    # Backwards over u_{T-1} .. u_1: first the steps after S - 1, which share one L, then those before.
    turned_TBD, r_turned_TBD, L_turned_GSDD = u_TBD[::-1], r_TBD[::-1], L_GSDD[:, ::-1].swapaxes(2, 3)
    shared = T - S
    recur(L_turned_GSDD[:, :1], group_B, turned_TBD[:shared], r_turned_TBD[0], r_turned_TBD[1 : shared + 1])
    if S > 1:
        L_turned_GSDD = L_turned_GSDD[:, :-1]
        recur(L_turned_GSDD, group_B, turned_TBD[shared:-1], r_turned_TBD[shared], r_turned_TBD[shared + 1 :])

    N_GTDD = future_information(gains, information_GSDD, L_GSDD)
    covariance_GTDD = filtered.covariance_GTDD
    AP_GTDD = A @ covariance_GTDD
    PA_GTDD = AP_GTDD.swapaxes(2, 3)
    lag_GTDD = np.zeros((G, T, D, D))
    lag_GTDD[:, 1:] = AP_GTDD[:, :-1]
    lag_GTDD[:, 1:] -= filtered.predicted_covariance_GTDD[:, 1:] @ N_GTDD[:, :-1] @ AP_GTDD[:, :-1]
    return Smoothed(
        group_B,
        (filtered.mean_TBD + by_group(PA_GTDD, group_B, r_TBD)).swapaxes(0, 1),
        symmetric(covariance_GTDD - PA_GTDD @ N_GTDD @ AP_GTDD),
        lag_GTDD,
    )


# Forecast ---------------------------------------------------------------------------------------------------------


class Forecast(NamedTuple):
    """The marginal distribution of each of the H steps after the series. Covariances are by group."""

    group_B: np.ndarray
    mean_BHC: np.ndarray
    covariance_GHCC: np.ndarray


def forecast(model: LinearGaussian, filtered: Filtered, horizon: int) -> Forecast:
    """The exact predictive distribution of x_{T+1} .. x_{T+horizon}."""
    A, C, Q, R = model.transition, model.emission, model.transition_covariance, model.emission_covariance
    mean_BD, covariance_GDD = filtered.mean_TBD[-1], filtered.gains.filtered_GSDD[:, -1]
    means, covariances = [], []
    for _ in range(horizon):
        mean_BD = mean_BD @ A.T + model.latent_offset
        covariance_GDD = symmetric(A @ covariance_GDD @ A.T + Q)
        means.append(mean_BD @ C.T + model.emission_offset)
        covariances.append(symmetric(C @ covariance_GDD @ C.T + R))
    return Forecast(filtered.group_B, np.stack(means, axis=1), np.stack(covariances, axis=1))


# What all of them share -------------------------------------------------------------------------------------------


def masked(model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(x_TBC, observed_BTC). x is a copy of the values in float64 minus the offset, and 0 where missing."""
    x_BTC = np.asarray(x_BTC, dtype=np.float64)
    if x_BTC.ndim != 3 or x_BTC.shape[2] != model.channels or 0 in x_BTC.shape:
        raise ValueError(f"values: have shape {x_BTC.shape}, must be (series, steps, {model.channels}), none of them 0")
    present_BTC = np.isfinite(x_BTC)
    if observed_BTC is None:
        observed_BTC = present_BTC
    observed_BTC = np.asarray(observed_BTC, dtype=bool)
    if observed_BTC.shape != x_BTC.shape:
        raise ValueError(f"observed: has shape {observed_BTC.shape}, must be that of the values, {x_BTC.shape}")
    if not present_BTC[observed_BTC].all():
        raise ValueError("values: hold a number that is not finite and that `observed` marks as observed")
    centred_TBC = np.empty((x_BTC.shape[1], x_BTC.shape[0], x_BTC.shape[2]))
    np.subtract(x_BTC.swapaxes(0, 1), model.emission_offset, out=centred_TBC)
    if not observed_BTC.all():
        centred_TBC[~observed_BTC.swapaxes(0, 1)] = 0.0
    return centred_TBC, observed_BTC


def grouped(observed_BTC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different patterns of observed values (G, T, C), and the pattern of each series (B,)."""
    B = len(observed_BTC)
    if B == 1 or observed_BTC.all():
        return observed_BTC[:1], np.zeros(B, dtype=np.int64)
    packed = np.packbits(observed_BTC.reshape(B, -1), axis=1)
    _, first, group_B = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return observed_BTC[first], group_B.reshape(B)
