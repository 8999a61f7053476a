"""The part of filter and smoother that depends on which values are missing, and not on the values.

Series that miss the same values form a group and share all of it. The Riccati recursion ends early if no more values
are missing and it has converged. If gaps prevent that, the steps of a series are cut into blocks that run side by side,
because a product of many small matrices costs little more than one. NumPy; names and axes as in
models/kalman/filter.py, G groups.
"""

import math
from dataclasses import dataclass

import numpy as np

from reducible.models.kalman.linear_recurrence import changing_recurrence, linear_recurrence
from reducible.models.kalman.model import LinearGaussian, symmetric

FEW_STEPS = 64
"""The most steps with gaps that are computed one by one."""

MANY_GROUPS = 100
"""The number of covariances that a step can process together at little more than the cost of one."""

FEW_GROUPS = 8
"""The most groups whose means are computed one group after the other."""

STEADY = 1e-15
"""A covariance has converged if it changes by no more than this, relative to each coordinate's own deviation."""


@dataclass(frozen=True)
class Gains:
    """The covariances of a filter and what follows from them, which do not depend on the values.

    S steps are kept. If S < T, the last one holds for all later steps. Rows and columns of missing channels are 0,
    except for a diagonal of 1 in `precision`.
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


def filter_gains(model: LinearGaussian, patterns_GTC: np.ndarray) -> Gains:
    """The Riccati recursion of every group, until it converges. If gaps prevent that, blocks of steps run side by side.

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
        if blocks == 1 and step >= complete_from and _stands_still(before, P):
            break
    kept = (np.stack(row, axis=2) for row in zip(*rows, strict=True))
    return Gains(T, *(row.reshape(G, -1, *row.shape[3:])[:, :T] for row in kept))


def _block_starts(model: LinearGaussian, seen_LGNC: np.ndarray, first_GDD: np.ndarray) -> np.ndarray:
    """(G, N, D, D) Cov(z | what came before) at the first step of every block.

    First for all blocks at once: after the L steps of a block, a latent z at its beginning has become gain z + a
    constant with some covariance, and `information` is the precision of what the block's values say about z (Sarkka and
    Garcia-Fernandez 2021). Then the blocks are joined one after another.
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
        raise ValueError("emission_noise: some observed values have no noise and therefore no density; add noise")
    precision = np.linalg.inv(innovation)
    K = PC @ precision
    # Joseph's form, because after the first observation of a diffuse latent the difference would be lost in rounding.
    rest = np.eye(P.shape[-1]) - K @ C
    filtered = rest @ P @ _turned(rest) + K @ R @ _turned(K)
    return P, filtered, np.broadcast_to(C, (*P.shape[:-2], *C.shape[-2:])), K, precision, log_determinant


def _moved(model: LinearGaussian, covariance: np.ndarray) -> np.ndarray:
    """A step later: A P A' + Q."""
    return symmetric(model.transition @ covariance @ model.transition.T.copy() + model.transition_covariance)


def _stands_still(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether covariances have converged. Each coordinate is compared with its own deviation, because one of small
    variance may still be far from its limit when it changes little beside the others."""
    deviation = np.sqrt(np.maximum(np.diagonal(after, axis1=-2, axis2=-1), 0))
    limit = STEADY * after.shape[-1] * deviation[..., :, None] * deviation[..., None, :]
    return bool((np.abs(after - before) <= limit).all())


def _turned(matrix: np.ndarray) -> np.ndarray:
    """The transpose, also in memory: otherwise products of many small matrices take four times as long."""
    return np.ascontiguousarray(matrix.swapaxes(-1, -2))


def _without_missing(
    model: LinearGaussian, observed: np.ndarray, complete: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """C and R of steps (..., C). A missing channel has a row of 0 in C, and independent noise of variance 1."""
    C, R = model.emission, model.emission_covariance
    if complete:
        return C, R
    seen = observed[..., None]
    return np.where(seen, C, 0.0), np.where(seen & observed[..., None, :], R, np.eye(len(R)) * ~seen)


def future_information(gains: Gains, information_GSDD: np.ndarray, L_GSDD: np.ndarray) -> np.ndarray:
    """N_t of the smoother (G, T, D, D): N_{t-1} = information_t + L_t' N_t L_t, N_T = 0, from the end to the start.

    It runs until it converges, and the rest is filled in. If every step differs, blocks of steps run side by side: the
    recursion is affine in N, so its result for 0 and its factor describe a block.
    """
    G, S, D, _ = L_GSDD.shape
    T = gains.steps
    N_GTDD = np.zeros((G, T, D, D))
    blocks = max(1, min(2 * math.isqrt(T), MANY_GROUPS // G)) if S == T > FEW_STEPS else 1
    if blocks == 1:
        t = T - 2
        while t >= 0:
            kept = min(t + 1, S - 1)
            N_GTDD[:, t] = _backwards(information_GSDD[:, kept], L_GSDD[:, kept], N_GTDD[:, t + 1])
            if t >= S and _stands_still(N_GTDD[:, t + 1], N_GTDD[:, t]):
                N_GTDD[:, S - 1 : t] = N_GTDD[:, t : t + 1]
                t = S - 1
            t -= 1
        return N_GTDD
    # Backward step k has the information and L of t = T - k. The padding of the last block changes nothing.
    length = -(-(T - 1) // blocks)
    turned_GKDD, L_turned_GKDD = np.zeros((2, G, blocks * length, D, D))
    turned_GKDD[:, : T - 1], L_turned_GKDD[:, : T - 1] = information_GSDD[:, :0:-1], L_GSDD[:, :0:-1]
    shape = (G, blocks, length, D, D)
    steps = list(zip(*(np.moveaxis(a.reshape(shape), 2, 0) for a in (turned_GKDD, L_turned_GKDD)), strict=True))
    of_nothing, factor = np.zeros((G, blocks, D, D)), np.broadcast_to(np.eye(D), (G, blocks, D, D))
    for information, L in steps:
        of_nothing, factor = _backwards(information, L, of_nothing), factor @ L
    starts = [np.zeros((G, D, D))]
    for block in range(blocks - 1):
        starts.append(_backwards(of_nothing[:, block], factor[:, block], starts[-1]))
    N = np.stack(starts, axis=1)
    rows = []
    for information, L in steps:
        N = _backwards(information, L, N)
        rows.append(N)
    N_GTDD[:, :-1] = np.stack(rows, axis=2).reshape(G, -1, D, D)[:, T - 2 :: -1]
    return N_GTDD


def _backwards(information: np.ndarray, L: np.ndarray, N: np.ndarray) -> np.ndarray:
    """information + L' N L."""
    return symmetric(information + _turned(L) @ (N @ L))


def recur(F_GSDD: np.ndarray, group_B: np.ndarray, u_TBD: np.ndarray, y_BD: np.ndarray, y_TBD: np.ndarray) -> None:
    """Writes y_t = F_t y_{t-1} + u_t of every series, with F by group. The last F holds for all later steps."""
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
            changing_recurrence(F_GSDD[group, :changing], u_TND[:changing], start_ND, own_TND[:changing])
            start_ND = own_TND[changing - 1] if changing else start_ND
        if changing < T:
            linear_recurrence(F_GSDD[group, -1], u_TND[changing:], start_ND, own_TND[changing:])
        if G > 1:
            y_TBD[:, rows] = own_TND  # indexing by number has made a copy


def by_group(M_GSIJ: np.ndarray, group_B: np.ndarray, v_TBJ: np.ndarray) -> np.ndarray:
    """The matrix of each series' group and step times its vector (T, B, I). The last one holds for all later steps."""
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
