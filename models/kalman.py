"""The linear-Gaussian state-space model in covariance form: exact likelihood, filter, smoother, forecasts.

    z_1 = initial_mean + N(0, initial_covariance)
    z_t = A z_{t-1} + b + B e_t          A transition, b latent_offset, B transition_noise
    x_t = C z_t + c + D psi_t            C emission, c emission_offset, D emission_noise

with e and psi standard normal (Kalman 1960; Durbin and Koopman 2012, chapter 4). NumPy, float64. Axes: B series, T
steps, C channels, D latents, G groups of series that miss the same values: covariances depend on which values were
observed and not on the values, so that a group shares them. Once they stand still (complete data, after some steps)
the means follow a recursion with constant coefficients, which needs no loop over time (models/recursion.py).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from models.kalman_banded import banded_log_likelihood
from models.recursion import changing_recursion, linear_recursion

DIFFUSE_VARIANCE = 1e7
"""Initial variance of a latent about which nothing is known, as Durbin and Koopman have it for the Nile."""

FEW_STEPS = 64
"""Steps with gaps that are taken one by one."""

MANY_GROUPS = 100
"""Covariances that a step can treat together for little more than the price of one."""

FEW_GROUPS = 8
"""Groups whose means are found one group after the other."""

STEADY = 1e-14
"""A covariance that changes by less than this share of its largest entry stands still."""


@dataclass(frozen=True)
class LinearGaussian:
    """The parameters; ValueError names the one whose shape does not fit or that is no covariance."""

    transition: np.ndarray
    """A (D, D)."""
    transition_noise: np.ndarray
    """B (D, any): the noise of a step has covariance B B'."""
    emission: np.ndarray
    """C (C, D)."""
    emission_noise: np.ndarray
    """D (C, any): what is observed has noise of covariance D D'."""
    initial_mean: np.ndarray
    """(D,) mean of z_1."""
    initial_covariance: np.ndarray
    """(D, D) of z_1: `diffuse` where nothing is known, `stationary` where the process has long been running."""
    latent_offset: np.ndarray | float = 0.0
    """b (D,), or one number for all."""
    emission_offset: np.ndarray | float = 0.0
    """c (C,), or one number for all."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.emission.ndim != 2:
            raise ValueError(f"emission: has shape {self.emission.shape}, must be (channels, latents)")
        channels, latents = self.emission.shape
        wanted: dict[str, tuple[int | None, ...]] = {
            "transition": (latents, latents),
            "transition_noise": (latents, None),
            "emission_noise": (channels, None),
            "initial_mean": (latents,),
            "initial_covariance": (latents, latents),
            "latent_offset": (latents,),
            "emission_offset": (channels,),
        }
        for name in ("latent_offset", "emission_offset"):
            if getattr(self, name).ndim == 0:
                object.__setattr__(self, name, np.broadcast_to(getattr(self, name), wanted[name]))  # type: ignore[arg-type]
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value.ndim != len(shape) or any(
                want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
            ):
                raise ValueError(
                    f"{name}: has shape {value.shape}; emission of shape {self.emission.shape} asks for "
                    f"({', '.join('any' if size is None else str(size) for size in shape)})"
                )
        for name in self.__dataclass_fields__:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name}: holds a number that is not finite")
        spread = np.linalg.eigvalsh(symmetric(self.initial_covariance))
        if spread.min() < -1e-9 * abs(spread).max():
            raise ValueError("initial_covariance: has a negative eigenvalue, so it is no covariance")

    @property
    def channels(self) -> int:
        return self.emission.shape[0]

    @property
    def latents(self) -> int:
        return self.emission.shape[1]

    @property
    def transition_covariance(self) -> np.ndarray:
        """Q = B B'."""
        return self.transition_noise @ self.transition_noise.T

    @property
    def emission_covariance(self) -> np.ndarray:
        """R = D D'."""
        return self.emission_noise @ self.emission_noise.T


def diffuse(latents: int, variance: float = DIFFUSE_VARIANCE) -> np.ndarray:
    """An initial covariance that says next to nothing.

    Two conventions for the likelihood that follows: all terms, or without those of the first steps (`skip`), which
    say little but how large the variance was chosen.
    """
    return variance * np.eye(latents)


def stationary(transition: np.ndarray, transition_noise: np.ndarray) -> np.ndarray:
    """The covariance P = A P A' + B B' of a process that has long been running; ValueError where it has none."""
    from scipy.linalg import solve_discrete_lyapunov

    radius = abs(np.linalg.eigvals(transition)).max()
    if radius >= 1:
        raise ValueError(f"transition: its largest eigenvalue is {radius:.6g}; a process is stationary below 1")
    return symmetric(solve_discrete_lyapunov(transition, transition_noise @ transition_noise.T))


# Filter -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gains:
    """What the covariances of a filter come to, before any value is seen.

    S steps are kept; where S < T, the last one stands for all that follow. Rows and columns of missing channels are 0,
    but for a diagonal of 1 in `precision`.
    """

    steps: int
    """T."""
    predicted_GSDD: np.ndarray
    """Cov(z_t | x_<t)."""
    filtered_GSDD: np.ndarray
    """Cov(z_t | x_<=t)."""
    emission_GSCD: np.ndarray
    """C."""
    gain_GSDC: np.ndarray
    """K: filtered mean = predicted mean + K innovation."""
    precision_GSCC: np.ndarray
    """Inverse covariance of the innovation."""
    log_determinant_GS: np.ndarray
    """Of the innovation's covariance."""

    def at_every_step(self, kept_GS: np.ndarray) -> np.ndarray:
        """(G, T, ...) from (G, S, ...)."""
        return kept_GS[:, np.minimum(np.arange(self.steps), kept_GS.shape[1] - 1)]


@dataclass(frozen=True)
class Filtered:
    """What x_1 .. x_t say about z_t. Inside, time is the first axis: a step of all series lies together."""

    group_B: np.ndarray
    """Which group each series belongs to."""
    gains: Gains
    predicted_mean_TBD: np.ndarray
    """E[z_t | x_<t]."""
    innovation_TBC: np.ndarray
    """x_t - E[x_t | x_<t]; 0 where missing."""
    log_likelihood_BT: np.ndarray
    """log p(x_t | x_<t) of what was observed, nats."""

    @cached_property
    def mean_TBD(self) -> np.ndarray:
        """E[z_t | x_<=t]."""
        return self.predicted_mean_TBD + _by_group(self.gains.gain_GSDC, self.group_B, self.innovation_TBC)

    @property
    def mean_BTD(self) -> np.ndarray:
        """E[z_t | x_<=t]."""
        return self.mean_TBD.swapaxes(0, 1)

    @property
    def predicted_mean_BTD(self) -> np.ndarray:
        """E[z_t | x_<t]."""
        return self.predicted_mean_TBD.swapaxes(0, 1)

    @property
    def predicted_covariance_GTDD(self) -> np.ndarray:
        """Cov(z_t | x_<t)."""
        return self.gains.at_every_step(self.gains.predicted_GSDD)

    @property
    def covariance_GTDD(self) -> np.ndarray:
        """Cov(z_t | x_<=t)."""
        return self.gains.at_every_step(self.gains.filtered_GSDD)


def kalman_filter(model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None = None) -> Filtered:
    """Filters every series. `observed` is False where a value is missing; without it, NaN is missing.

    Raises:
        ValueError: values of another shape, or observations without noise in some direction (no density).
    """
    x_TBC, observed_BTC = masked(model, x_BTC, observed_BTC)
    patterns_GTC, group_B = grouped(observed_BTC)
    complete = len(patterns_GTC) == 1 and patterns_GTC.all()
    gains = filter_gains(model, patterns_GTC)
    mean_TBD = _predicted_means(model, x_TBC, group_B, gains)
    innovation_TBC = x_TBC  # our own copy
    innovation_TBC -= _by_group(gains.emission_GSCD, group_B, mean_TBD)
    if not complete:
        innovation_TBC[~observed_BTC.swapaxes(0, 1)] = 0.0
    weighted_TBC = _by_group(gains.precision_GSCC, group_B, innovation_TBC)
    terms_BT = np.einsum("tbc,tbc->bt", innovation_TBC, weighted_TBC)
    terms_BT += gains.at_every_step(gains.log_determinant_GS)[group_B]
    terms_BT += math.log(2 * math.pi) * (model.channels if complete else observed_BTC.sum(2))
    terms_BT *= -0.5
    return Filtered(group_B, gains, mean_TBD, innovation_TBC, terms_BT)


def log_likelihood(
    model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None = None, skip: int = 0
) -> np.ndarray:
    """(B,) log p(x), nats; without the terms of the first `skip` steps (`loglikelihood_burn` of statsmodels).

    By the filter; long series with gaps by their posterior's precision (models/kalman_banded.py), where that is safe.
    """
    x_TBC, observed_BTC = masked(model, x_BTC, observed_BTC)
    if not skip and x_BTC.shape[1] > FEW_STEPS and not observed_BTC.all():
        found_B = banded_log_likelihood(model, x_TBC.swapaxes(0, 1), observed_BTC)
        if found_B is not None:
            return found_B
    return kalman_filter(model, x_BTC, observed_BTC).log_likelihood_BT[:, skip:].sum(1)


def filter_gains(model: LinearGaussian, patterns_GTC: np.ndarray) -> Gains:
    """The Riccati recursion of every group: until it stands still, or where gaps keep it from that, over blocks of
    steps side by side.

    Raises:
        ValueError: observations without noise in some direction.
    """
    G, T, channels = patterns_GTC.shape
    complete_T: np.ndarray = patterns_GTC.all(axis=(0, 2))  # type: ignore[assignment]
    complete_from = T - int(np.argmin(complete_T[::-1])) if not complete_T.all() else 0
    blocks = max(1, min(2 * math.isqrt(T), MANY_GROUPS // G)) if complete_from > FEW_STEPS else 1
    length = -(-T // blocks)
    seen_GTC = np.pad(patterns_GTC, ((0, 0), (0, blocks * length - T), (0, 0)))
    seen_LGNC = np.ascontiguousarray(np.moveaxis(seen_GTC.reshape(G, blocks, length, channels), 2, 0))
    P = np.broadcast_to(symmetric(model.initial_covariance), (G, 1, model.latents, model.latents))
    if blocks > 1:
        P = _block_starts(model, seen_LGNC, P[:, 0])
    rows = []
    for step in range(length):
        complete = blocks == 1 and bool(complete_T[step])
        row = _observed(P, *_without_missing(model, seen_LGNC[step], complete))
        rows.append(row)
        before, P = P, _moved(model, row[1])
        if blocks == 1 and step >= complete_from and np.abs(P - before).max() <= STEADY * np.abs(P).max():
            break
    kept = (np.stack(row, axis=2) for row in zip(*rows, strict=True))
    return Gains(T, *(row.reshape(G, -1, *row.shape[3:])[:, :T] for row in kept))


def _block_starts(model: LinearGaussian, seen_LGNC: np.ndarray, first_GDD: np.ndarray) -> np.ndarray:
    """(G, N, D, D) Cov(z | what came before) at the first step of every block.

    What the L steps of a block make of the latent z at its beginning, for all blocks at once: afterwards it is gain z +
    a constant with some covariance, and the values of the block say of z what `information` is the precision of
    (Sarkka and Garcia-Fernandez 2021). The blocks are then put one behind the other.
    """
    _, G, N, _ = seen_LGNC.shape
    D = model.latents
    gain = np.broadcast_to(np.eye(D), (G, N, D, D))
    covariance, information = np.zeros((G, N, D, D)), np.zeros((G, N, D, D))
    for seen_GNC in seen_LGNC:
        _, filtered, C, K, precision, _ = _observed(covariance, *_without_missing(model, seen_GNC))
        C_gain = C @ gain
        information += _turned(C_gain) @ (precision @ C_gain)
        gain = model.transition @ (gain - K @ C_gain)
        covariance = _moved(model, filtered)
    starts = [first_GDD]
    for block in range(N - 1):
        P = starts[-1]
        known = np.linalg.solve(np.eye(D) + P @ information[:, block], P)
        starts.append(symmetric(gain[:, block] @ known @ _turned(gain[:, block]) + covariance[:, block]))
    return np.stack(starts, axis=1)


def _observed(P: np.ndarray, C: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `Gains` keeps of steps with these predicted covariances, any axes before the last two."""
    PC = P @ _turned(C)
    innovation = C @ PC + R
    sign, log_determinant = np.linalg.slogdet(innovation)
    if not (sign > 0).all() or not np.isfinite(log_determinant).all():
        raise ValueError("emission_noise: some of what is observed has no density; add noise")
    precision = np.linalg.inv(innovation)
    K = PC @ precision
    # Joseph's form: what is left after the first look at a diffuse latent is not lost in rounding.
    rest = np.eye(P.shape[-1]) - K @ C
    filtered = rest @ P @ _turned(rest) + K @ R @ _turned(K)
    return P, filtered, np.broadcast_to(C, (*P.shape[:-2], *C.shape[-2:])), K, precision, log_determinant


def _moved(model: LinearGaussian, covariance: np.ndarray) -> np.ndarray:
    """A step later: A P A' + Q."""
    return symmetric(model.transition @ covariance @ model.transition.T.copy() + model.transition_covariance)


def _turned(matrix: np.ndarray) -> np.ndarray:
    """Transposed in memory too: products of many small matrices that are not take four times as long."""
    return np.ascontiguousarray(matrix.swapaxes(-1, -2))


def _without_missing(
    model: LinearGaussian, observed: np.ndarray, complete: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """C and R of steps (..., C): a missing channel reads nothing, and its noise stands alone with variance 1."""
    C, R = model.emission, model.emission_covariance
    if complete:
        return C, R
    seen = observed[..., None]
    return np.where(seen, C, 0.0), np.where(seen & observed[..., None, :], R, np.eye(len(R)) * ~seen)


def _predicted_means(model: LinearGaussian, x_TBC: np.ndarray, group_B: np.ndarray, gains: Gains) -> np.ndarray:
    """E[z_t | x_<t]: a_{t+1} = A (I - K_t C) a_t + A K_t (x_t - c) + b; K_t is 0 for what is missing."""
    A = model.transition
    AK_GSDC = A @ gains.gain_GSDC
    F_GSDD = A - AK_GSDC @ gains.emission_GSCD
    u_TBD = _by_group(AK_GSDC, group_B, x_TBC)
    u_TBD += model.latent_offset
    a_TBD = np.empty_like(u_TBD)
    a_TBD[0] = model.initial_mean
    _recur(F_GSDD, group_B, u_TBD[:-1], a_TBD[0], a_TBD[1:])
    return a_TBD


def _recur(F_GSDD: np.ndarray, group_B: np.ndarray, u_TBD: np.ndarray, y_BD: np.ndarray, y_TBD: np.ndarray) -> None:
    """Writes y_t = F_t y_{t-1} + u_t of every series by its group; the last F stands for all after."""
    G, S, _, _ = F_GSDD.shape
    T = len(u_TBD)
    changing = min(S - 1, T)
    if G > FEW_GROUPS:
        for t in range(changing):
            y_BD = np.add(np.einsum("bij,bj->bi", F_GSDD[group_B, t], y_BD), u_TBD[t], out=y_TBD[t])
    for group in range(G):
        rows: np.ndarray | slice = slice(None) if G == 1 else np.flatnonzero(group_B == group)
        u_TND, own_TND, start_ND = u_TBD[:, rows], y_TBD[:, rows], y_BD[rows]
        if G <= FEW_GROUPS:
            changing_recursion(F_GSDD[group, :changing], u_TND[:changing], start_ND, own_TND[:changing])
            start_ND = own_TND[changing - 1] if changing else start_ND
        if changing < T:
            linear_recursion(F_GSDD[group, -1], u_TND[changing:], start_ND, own_TND[changing:])
        if G > 1:
            y_TBD[:, rows] = own_TND  # an array of its own, for rows were picked by number


# Smoother ---------------------------------------------------------------------------------------------------------


class Smoothed(NamedTuple):
    """What a whole series says about each z_t."""

    group_B: np.ndarray
    mean_BTD: np.ndarray
    covariance_GTDD: np.ndarray
    lag_GTDD: np.ndarray
    """Cov(z_t, z_{t-1}); 0 at the first step."""


def kalman_smoother(model: LinearGaussian, filtered: Filtered) -> Smoothed:
    """Backward pass of de Jong (1989): it inverts no covariance of latents, so that some may move without noise.

    What lies after t says r_t and N_t about z_{t+1}: r_{t-1} = C' S^-1 v_t + L_t' r_t and
    N_{t-1} = C' S^-1 C + L_t' N_t L_t with L_t = A (I - K_t C), r_T = 0, N_T = 0. Applied to the filtered moments, not
    to the predicted ones, so that an initial variance of 1e7 cancels nowhere.
    """
    A, gains, group_B = model.transition, filtered.gains, filtered.group_B
    score_GSDC = gains.emission_GSCD.swapaxes(2, 3) @ gains.precision_GSCC
    information_GSDD = score_GSDC @ gains.emission_GSCD
    L_GSDD = A - A @ gains.gain_GSDC @ gains.emission_GSCD
    u_TBD = _by_group(score_GSDC, group_B, filtered.innovation_TBC)
    r_TBD = np.zeros_like(u_TBD)
    T, B, D = u_TBD.shape
    G, S, _, _ = L_GSDD.shape

    # Backwards over u_{T-1} .. u_1: first the steps after S - 1, which share one L, then those before.
    turned_TBD, r_turned_TBD, L_turned_GSDD = u_TBD[::-1], r_TBD[::-1], L_GSDD[:, ::-1].swapaxes(2, 3)
    shared = T - S
    _recur(L_turned_GSDD[:, :1], group_B, turned_TBD[:shared], r_turned_TBD[0], r_turned_TBD[1 : shared + 1])
    if S > 1:
        L_turned_GSDD = L_turned_GSDD[:, :-1]
        _recur(L_turned_GSDD, group_B, turned_TBD[shared:-1], r_turned_TBD[shared], r_turned_TBD[shared + 1 :])

    N_GTDD = np.zeros((G, T, D, D))
    t = T - 2
    while t >= 0:
        kept = min(t + 1, S - 1)
        L_GDD, later_GDD = L_GSDD[:, kept], N_GTDD[:, t + 1]
        N_GTDD[:, t] = symmetric(information_GSDD[:, kept] + L_GDD.swapaxes(1, 2) @ later_GDD @ L_GDD)
        if t >= S and np.abs(N_GTDD[:, t] - later_GDD).max() <= STEADY * np.abs(later_GDD).max():
            N_GTDD[:, S - 1 : t] = N_GTDD[:, t : t + 1]
            t = S - 1
        t -= 1

    covariance_GTDD = filtered.covariance_GTDD
    AP_GTDD = A @ covariance_GTDD
    PA_GTDD = AP_GTDD.swapaxes(2, 3)
    lag_GTDD = np.zeros((G, T, D, D))
    lag_GTDD[:, 1:] = AP_GTDD[:, :-1]
    lag_GTDD[:, 1:] -= filtered.predicted_covariance_GTDD[:, 1:] @ N_GTDD[:, :-1] @ AP_GTDD[:, :-1]
    return Smoothed(
        group_B,
        (filtered.mean_TBD + _by_group(PA_GTDD, group_B, r_TBD)).swapaxes(0, 1),
        symmetric(covariance_GTDD - PA_GTDD @ N_GTDD @ AP_GTDD),
        lag_GTDD,
    )


# Forecast ---------------------------------------------------------------------------------------------------------


class Forecast(NamedTuple):
    """Of each of the H steps after the series, by itself; covariances by group."""

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
    """x_TBC, a copy of the values in float64 less the offset, 0 where missing; and observed_BTC."""
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
        raise ValueError("values: hold a number that is not finite where observed says that one was observed")
    centred_TBC = np.empty((x_BTC.shape[1], x_BTC.shape[0], x_BTC.shape[2]))
    np.subtract(x_BTC.swapaxes(0, 1), model.emission_offset, out=centred_TBC)
    if not observed_BTC.all():
        centred_TBC[~observed_BTC.swapaxes(0, 1)] = 0.0
    return centred_TBC, observed_BTC


def grouped(observed_BTC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different patterns of observed values (G, T, C) and which of them each series has (B,)."""
    B = len(observed_BTC)
    if B == 1 or observed_BTC.all():
        return observed_BTC[:1], np.zeros(B, dtype=np.int64)
    packed = np.packbits(observed_BTC.reshape(B, -1), axis=1)
    _, first, group_B = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return observed_BTC[first], group_B.reshape(B)


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """Its symmetric part: rounding must not add up."""
    return 0.5 * (matrix + matrix.swapaxes(-1, -2))


def _by_group(M_GSIJ: np.ndarray, group_B: np.ndarray, v_TBJ: np.ndarray) -> np.ndarray:
    """(T, B, I): the matrix of each series' group and step times its vector; the last matrix stands for all after."""
    G, S, rows, columns = M_GSIJ.shape
    T, B, _ = v_TBJ.shape
    out_TBI = np.empty((T, B, rows))
    changing = min(S - 1, T)
    if G == 1:
        np.matmul(v_TBJ[:changing], M_GSIJ[0, :changing].swapaxes(1, 2), out=out_TBI[:changing])
        np.matmul(v_TBJ[changing:].reshape(-1, columns), M_GSIJ[0, -1].T, out=out_TBI[changing:].reshape(-1, rows))
    else:
        M_BSIJ = M_GSIJ[group_B]
        np.einsum("bsij,sbj->sbi", M_BSIJ[:, :changing], v_TBJ[:changing], out=out_TBI[:changing])
        np.einsum("bij,tbj->tbi", M_BSIJ[:, -1], v_TBJ[changing:], out=out_TBI[changing:])
    return out_TBI
