"""The likelihood of series with gaps, by the Cholesky factor of the posterior's precision as a banded matrix.

The precision of z_1 .. z_T given a series is block-tridiagonal. As a band its factor takes one call of LAPACK,
whichever values are missing; all series are blocks of one band. With the posterior's mean m,
log p(x) = log p(x, m) - log p(m | x). The noise must have full rank, and covariances are inverted. If the condition
number of the band shows that digits were lost, the result is None. NumPy and SciPy; names as in kalman/filter.py.
"""

import math

import numpy as np

from reducible.models.kalman.model import LinearGaussian

CONDITION = 1e6
"""The largest condition number. Times a rounding of 1e-16 and the root of ten thousand steps it is 1e-8 nats."""

HELD = 2**24
"""The most numbers of a band at once: 128 MiB."""


def banded_log_likelihood(model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray) -> np.ndarray | None:
    """log p(x) in nats (B,); None if a noise does not have full rank or a band is too ill-conditioned.

    The emission's offset is already subtracted from `x`, which is 0 where missing.
    """
    covariances = (model.transition_covariance, model.initial_covariance, model.emission_covariance)
    try:
        factor_Q, factor_P, _ = (np.linalg.cholesky(covariance) for covariance in covariances)
    except np.linalg.LinAlgError:
        return None
    at_once = max(1, HELD // (x_BTC.shape[1] * 2 * model.latents**2))
    found = []
    for row in range(0, len(x_BTC), at_once):
        part = slice(row, row + at_once)
        found_B = _part(model, x_BTC[part], observed_BTC[part], factor_Q, factor_P)
        if found_B is None:
            return None
        found.append(found_B)
    return np.concatenate(found)


def _part(
    model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray, factor_Q: np.ndarray, factor_P: np.ndarray
) -> np.ndarray | None:
    """The same for a part of the series."""
    from scipy.linalg.lapack import dpbtrf, dpbtrs

    (B, T, _), D = x_BTC.shape, model.latents
    A, Q, P = model.transition, _inverse(factor_Q), _inverse(factor_P)
    set_BT, precision_MCC, log_determinant_M = _channel_sets(model, observed_BTC)
    score_MDC = model.emission.T @ precision_MCC

    diagonal_BTDD = (score_MDC @ model.emission)[set_BT]
    diagonal_BTDD[:, 0] += P
    diagonal_BTDD[:, 1:] += Q
    diagonal_BTDD[:, :-1] += A.T @ Q @ A
    below_DD = -Q @ A
    # A row here is a column of LAPACK's: coordinate j of step t from its diagonal down, then its part of step t+1.
    band_BTDN = np.zeros((B, T, D, 2 * D))
    for j in range(D):
        band_BTDN[:, :, j, : D - j] = diagonal_BTDD[:, :, j:, j]
        band_BTDN[:, :-1, j, D - j : 2 * D - j] = below_DD[:, j]
    band = band_BTDN.reshape(B * T * D, 2 * D).T
    norm = 2 * np.abs(band).sum(0).max()
    factor, failed = dpbtrf(band, lower=1, overwrite_ab=1)
    if failed or norm * inverse_norm(factor) > CONDITION:
        return None

    h_BTD = (score_MDC[set_BT] @ x_BTC[..., None])[..., 0]
    h_BTD[:, 0] += P @ model.initial_mean
    h_BTD[:, 1:] += Q @ model.latent_offset
    h_BTD[:, :-1] -= A.T @ (Q @ model.latent_offset)
    m_BTD = dpbtrs(factor, h_BTD.reshape(-1, 1), lower=1)[0].reshape(B, T, D)

    rest_BTC = x_BTC - m_BTD @ model.emission.T
    moved_BTD = m_BTD[:, 1:] - m_BTD[:, :-1] @ A.T - model.latent_offset
    first_BD = m_BTD[:, 0] - model.initial_mean
    weighted_BTC = (precision_MCC[set_BT] @ rest_BTC[..., None])[..., 0]
    squares_B = (rest_BTC * weighted_BTC).sum((1, 2)) + (moved_BTD * (moved_BTD @ Q)).sum((1, 2))
    squares_B += (first_BD * (first_BD @ P)).sum(1)
    logs_B = observed_BTC.sum((1, 2)) * math.log(2 * math.pi) + log_determinant_M[set_BT].sum(1)
    logs_B += 2 * np.log(factor[0]).reshape(B, T * D).sum(1)
    logs_B += 2 * ((T - 1) * np.log(np.diag(factor_Q)).sum() + np.log(np.diag(factor_P)).sum())
    return np.asarray(-0.5 * (squares_B + logs_B))


def inverse_norm(factor: np.ndarray) -> float:
    """The largest column sum of the inverse, from the banded Cholesky factor: Hager's estimate (Higham 1988)."""
    from scipy.linalg.lapack import dpbtrs

    size = factor.shape[1]
    x, found = np.full((size, 1), 1 / size), 0.0
    for _ in range(5):
        y = dpbtrs(factor, x, lower=1)[0]
        larger = float(np.abs(y).sum())
        if larger <= found:
            break
        found = larger
        slope = dpbtrs(factor, np.sign(y), lower=1)[0]
        steepest = int(np.abs(slope).argmax())
        if abs(slope[steepest, 0]) <= (slope * x).sum():
            break
        x = np.zeros((size, 1))
        x[steepest] = 1.0
    return found


def _channel_sets(model: LinearGaussian, observed_BTC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The M different sets of observed channels: the set of each step, the precision of each set's noise (0 for other
    channels), and the log determinant of its covariance."""
    B, T, C = observed_BTC.shape
    flat_NC = observed_BTC.reshape(B * T, C)
    if C <= 62:  # a set as a number: numbers sort much faster than rows
        _, first_M, set_N = np.unique(flat_NC @ (1 << np.arange(C)), return_index=True, return_inverse=True)
    else:
        packed = np.packbits(flat_NC, axis=1)
        _, first_M, set_N = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    seen_MC = flat_NC[first_M]
    seen_MCC = seen_MC[:, :, None] & seen_MC[:, None, :]
    R_MCC = np.where(seen_MCC, model.emission_covariance, np.eye(C) * ~seen_MC[:, None, :])
    return set_N.reshape(B, T), np.linalg.inv(R_MCC) * seen_MCC, np.linalg.slogdet(R_MCC)[1]


def _inverse(factor: np.ndarray) -> np.ndarray:
    """(L L')^-1."""
    root = np.linalg.inv(factor)
    return root.T @ root
