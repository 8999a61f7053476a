"""The certificate: how near each form of q can come to the exact likelihood of a linear-Gaussian model.

The posterior of z_1 .. z_T is Gaussian with a block-tridiagonal precision L and mean m(x). The gap of a bound is
KL(q || p(z | x)). Its smallest value over all q of a form, averaged over series that the model draws, is

    structured      q(z_t | z_{t-1}, x_{t:T})   0: the posterior has this form
    bidirectional   prod_t q(z_t | x)           (sum_t log|L_tt| - log|L|) / 2, with variances L_tt^-1 and means m
    causal          prod_t q(z_t | x_{<=t})     that, plus min E (m - mu)' L (m - mu) / 2 over causal means mu

so q(z_t | x_{<=t}) is never tight unless the future says nothing about z_t. The last minimum is a problem of
linear-quadratic control: with D_T = L_TT, D_t = L_tt - L_{t,t+1} D_{t+1}^-1 L_{t+1,t} and g_t = h_t - L_{t,t+1}
D_{t+1}^-1 g_{t+1}, where L m = h,

    (m - mu)' L (m - mu) = sum_t | mu_t - D_t^-1 (g_t - L_{t,t-1} mu_{t-1}) |^2_{D_t}

and the best mu_t has E[g_t | x_{<=t}] in place of g_t. The minimum is then sum_t tr(D_t^-1 Cov(g_t | x_{<=t})) / 2,
which a recursion backwards in time computes. Names as in models/kalman/filter.py.

These q have a full covariance inside a step. In the encoders of this package the coordinates of z_t are independent
given what q sees (`diagonal`). Then the sum of the logarithms of L_tt's diagonal replaces log|L_tt|, and the gap of
`structured` is half the sum over t of the same difference for D_t, the precision of z_t given z_{t-1}. With one latent
nothing changes.

The gaps are those of the true model's posterior and bind an encoder that is trained against that model. If p is learnt
as well, it may move to where its own posterior is easier to approximate. For an AR(0.9) observed with noise of its own
size, 40 steps, the best linear-Gaussian p for a factorised q loses 0.024 nats per step instead of 0.061, and with
causal means 0.036 instead of 0.185 (tests/models/kalman/test_certificate.py). Only the likelihood binds every model.
"""

from dataclasses import dataclass, replace

import numpy as np

from reducible.models.kalman.filter import LinearGaussian, kalman_filter, kalman_smoother
from reducible.models.kalman.gains import Gains, filter_gains
from reducible.models.kalman.model import symmetric

FORMS = ("structured", "bidirectional", "causal")


@dataclass(frozen=True)
class Certificate:
    """Nats of one whole series, on average over what the model draws."""

    steps: int
    negative_log_likelihood: float
    """E[-log p(x)]: on average no model of these series and no bound is below it."""
    structured: float
    """The smallest gap of q(z_t | z_{t-1}, x_{t:T}): 0 unless q is diagonal."""
    bidirectional: float
    """The smallest gap of q(z_t | x)."""
    causal: float
    """The smallest gap of q(z_t | x_{<=t})."""

    def floor(self, form: str) -> float:
        """The smallest -ELBO per step that a posterior of that form can reach with the true model."""
        return (self.negative_log_likelihood + float(getattr(self, form))) / self.steps


def certificate(
    model: LinearGaussian, steps: int, observed_TC: np.ndarray | None = None, diagonal: bool = False
) -> Certificate:
    """The floors for series of `steps` steps. `observed` says which values a series has; without it, all.

    `diagonal`: the coordinates of one step are independent in q, given what q sees.

    Raises:
        ValueError: the transition's noise or the first latent's covariance does not have full rank (z has no density).
    """
    if observed_TC is None:
        observed_TC = np.ones((steps, model.channels), dtype=bool)
    precision_TDD, below_DD, score_TDC = precision_blocks(model, observed_TC)
    D_TDD = backward_factor(precision_TDD, below_DD)
    log_determinant = np.linalg.slogdet(D_TDD)[1].sum()
    structured = 0.5 * (_log_precision(D_TDD, diagonal) - log_determinant)
    bidirectional = 0.5 * (_log_precision(precision_TDD, diagonal) - log_determinant)
    gains = filter_gains(model, observed_TC[None])
    counted = observed_TC.sum()
    entropy = 0.5 * (counted * (1 + np.log(2 * np.pi)) + gains.at_every_step(gains.log_determinant_GS).sum())
    U_TDD = _outlook(model, D_TDD, below_DD, score_TDC)
    causal = 0.5 * _causal_excess(U_TDD, D_TDD, below_DD, score_TDC, gains)
    return Certificate(steps, float(entropy), structured, bidirectional, bidirectional + causal)


def _log_precision(precision_TDD: np.ndarray, diagonal: bool) -> float:
    """Log determinant of the precision of the best q(z_t), summed over steps."""
    if diagonal:
        return float(np.log(np.diagonal(precision_TDD, axis1=1, axis2=2)).sum())
    return float(np.linalg.slogdet(precision_TDD)[1].sum())


def precision_blocks(model: LinearGaussian, observed_TC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L_tt (T, D, D), L_{t,t-1} (D, D; the same for all t) and what h_t gives for x_t - c (T, D, C)."""
    T = len(observed_TC)
    Q = _inverse(model.transition_covariance, "transition_noise") if T > 1 else np.zeros((model.latents,) * 2)
    A, C, R = model.transition, model.emission, model.emission_covariance
    seen_TCC = observed_TC[:, :, None] & observed_TC[:, None, :]
    score_TDC = C.T @ (np.linalg.inv(np.where(seen_TCC, R, np.eye(len(R)))) * seen_TCC)
    precision_TDD = score_TDC @ C
    precision_TDD[0] += _inverse(model.initial_covariance, "initial_covariance")
    precision_TDD[1:] += Q
    precision_TDD[:-1] += A.T @ Q @ A
    return symmetric(precision_TDD), -Q @ A, score_TDC


def backward_factor(precision_TDD: np.ndarray, below_DD: np.ndarray) -> np.ndarray:
    """D_t: the precision of z_t given z_{t-1} and the series."""
    D_TDD = precision_TDD.copy()
    for t in range(len(D_TDD) - 2, -1, -1):
        D_TDD[t] -= symmetric(below_DD.T @ np.linalg.solve(D_TDD[t + 1], below_DD))
    return D_TDD


def causal_gaps(model: LinearGaussian, x_BTC: np.ndarray, diagonal: bool = False) -> np.ndarray:
    """The gap, on these very series (B,), of the causal q that is best on average. The series must be complete.

    Its mean over series that the model draws is `Certificate.causal`. The gap of an encoder on the same series varies
    much less about this value than about that mean.
    """
    _, T, _ = x_BTC.shape
    observed_TC = np.ones(x_BTC.shape[1:], dtype=bool)
    precision_TDD, below_DD, score_TDC = precision_blocks(model, observed_TC)
    D_TDD = backward_factor(precision_TDD, below_DD)
    U_TDD = _outlook(model, D_TDD, below_DD, score_TDC)
    # Relative to the mean, so that every constant is 0.
    z_D, middle_TC = model.initial_mean, np.empty(x_BTC.shape[1:])
    for t in range(T):
        middle_TC[t] = model.emission @ z_D + model.emission_offset
        z_D = model.transition @ z_D + model.latent_offset
    nothing = np.zeros(model.latents)
    centred = replace(model, initial_mean=nothing, latent_offset=nothing, emission_offset=np.zeros(model.channels))
    filtered = kalman_filter(centred, x_BTC - middle_TC)
    m_BTD, a_BTD = kalman_smoother(centred, filtered).mean_BTD, filtered.mean_BTD
    h_BTD = np.einsum("tdc,btc->btd", score_TDC, x_BTC - middle_TC)
    g_BTD = h_BTD - np.einsum("tij,btj->bti", U_TDD, a_BTD)
    mu_BD, gap_B = np.zeros_like(a_BTD[:, 0]), np.zeros(len(x_BTC))
    error_BD = np.zeros_like(mu_BD)
    for t in range(T):
        mu_BD = np.linalg.solve(D_TDD[t], (g_BTD[:, t] - (mu_BD @ below_DD.T if t else 0.0)).T).T
        # (m - mu)' L (m - mu), block by block of the factorisation.
        before_BD, error_BD = error_BD, m_BTD[:, t] - mu_BD
        moved_BD = error_BD + (np.linalg.solve(D_TDD[t], below_DD @ before_BD.T).T if t else 0.0)
        gap_B += 0.5 * np.einsum("bi,ij,bj->b", moved_BD, D_TDD[t], moved_BD)
    return gap_B + 0.5 * (_log_precision(precision_TDD, diagonal) - _log_precision(D_TDD, False))


def _outlook(model: LinearGaussian, D_TDD: np.ndarray, below_DD: np.ndarray, score_TDC: np.ndarray) -> np.ndarray:
    """U_t of E[g_t | x_{<=t}] = h_t - U_t a_t + constant, a_t the filtered mean: U_T = 0, and
    U_t = L_{t,t+1} D_{t+1}^-1 (C' R^-1 C - U_{t+1}) A."""
    U_TDD = np.zeros_like(D_TDD)
    for t in range(len(D_TDD) - 2, -1, -1):
        back_DD = np.linalg.solve(D_TDD[t + 1], below_DD).T  # L_{t,t+1} D_{t+1}^-1
        U_TDD[t] = back_DD @ (score_TDC[t + 1] @ model.emission - U_TDD[t + 1]) @ model.transition
    return U_TDD


def _causal_excess(
    U_TDD: np.ndarray, D_TDD: np.ndarray, below_DD: np.ndarray, score_TDC: np.ndarray, gains: Gains
) -> float:
    """sum_t tr(D_t^-1 Cov(g_t | x_{<=t})): the innovation of step t moves the expectation of g_t by
    (score_t - U_t K_t) times itself."""
    K_TDC = gains.at_every_step(gains.gain_GSDC)[0]
    S_TCC = np.linalg.inv(gains.at_every_step(gains.precision_GSCC)[0])
    covariance_DD, excess = np.zeros_like(below_DD), 0.0
    for t in range(len(D_TDD) - 2, -1, -1):
        # Cov(g_{t+1} | x_{<=t}) = Cov(g_{t+1} | x_{<=t+1}) + what the innovation of t+1 moves.
        moved_DC = score_TDC[t + 1] - U_TDD[t + 1] @ K_TDC[t + 1]
        covariance_DD = covariance_DD + moved_DC @ S_TCC[t + 1] @ moved_DC.T
        back_DD = np.linalg.solve(D_TDD[t + 1], below_DD).T
        covariance_DD = symmetric(back_DD @ covariance_DD @ back_DD.T)
        excess += float(np.trace(np.linalg.solve(D_TDD[t], covariance_DD)))
    return excess


def _inverse(covariance: np.ndarray, name: str) -> np.ndarray:
    try:
        factor = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        raise ValueError(
            f"{name}: does not have full rank, so the latents have no density and no gap is finite"
        ) from None
    return factor.T @ factor
