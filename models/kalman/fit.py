"""Maximum likelihood for linear-Gaussian models: by EM (Shumway and Stoffer 1982) and by gradient (L-BFGS).

Both start from a model, change the parameters named in `free` and leave the others as they are. Both use the posterior
moments of models/kalman/precision_form.py: EM maximises the expected log likelihood under them, and its gradient at the
same parameters is the gradient of the likelihood. Missing values, several series and any number of channels therefore
need no code of their own.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reducible.models.kalman.filter import LinearGaussian, masked
from reducible.models.kalman.precision_form import (
    Moments,
    Parameters,
    Regression,
    expected_log_likelihood,
    factor_of,
    model_of,
    moments,
    packed_of,
    parameters_of,
    posterior,
)

FREE = ("transition", "latent_offset", "transition_noise", "emission", "emission_offset", "emission_noise")
"""The parameters learnt by default: not those of the first latent, about which one series says next to nothing."""

TENSORS = {
    "transition": "transition",
    "latent_offset": "latent_offset",
    "transition_noise": "transition_factor",
    "emission": "emission",
    "emission_offset": "emission_offset",
    "emission_noise": "emission_factor",
    "initial_mean": "initial_mean",
    "initial_covariance": "initial_factor",
}
"""A field of LinearGaussian -> the field of Parameters that holds it."""


class Fit(NamedTuple):
    model: LinearGaussian
    log_likelihoods: list[float]
    """Nats of all series together, at the start and after every step. The last one is that of `model`."""
    converged: bool
    """Whether it stopped because progress ended, not because the steps were used up."""


def fit_by_em(
    start: LinearGaussian,
    x_BTC: np.ndarray,
    observed_BTC: np.ndarray | None = None,
    free: Collection[str] = FREE,
    steps: int = 200,
    tolerance: float = 1e-6,
) -> Fit:
    """Steps of EM until one gains less than `tolerance` nats. The likelihood never falls.

    Raises:
        ValueError: `free` has an unknown name, or a noise does not have full rank at the start or loses it.
    """
    _check(free)
    x, observed = _tensors(start, x_BTC, observed_BTC)
    parameters = parameters_of(start)
    log_likelihoods: list[float] = []
    with torch.no_grad():
        for _ in range(steps + 1):
            given = posterior(parameters, x, observed)
            log_likelihoods.append(float(given.log_likelihood_B.sum()))
            if len(log_likelihoods) > 1 and log_likelihoods[-1] - log_likelihoods[-2] < tolerance:
                return Fit(model_of(parameters), log_likelihoods, True)
            if len(log_likelihoods) <= steps:
                parameters = maximised(parameters, moments(given), free)
    return Fit(model_of(parameters), log_likelihoods, False)


def maximised(parameters: Parameters, given: Moments, free: Collection[str]) -> Parameters:
    """The M-step: the free parameters maximise the expected log likelihood, and the others stay as they are."""
    # Each is a linear regression on a latent and on 1; the last column is the offset.
    now = {
        "initial": parameters.initial_mean[:, None],
        "transition": torch.cat([parameters.transition, parameters.latent_offset[:, None]], 1),
        "emission": torch.cat([parameters.emission, parameters.emission_offset[:, None]], 1),
    }
    offsets = {"initial": "initial_mean", "transition": "latent_offset", "emission": "emission_offset"}
    noises = {"initial": "initial_covariance", "transition": "transition_noise", "emission": "emission_noise"}
    weights, factors = {}, {}
    for part, regression in given._asdict().items():
        chosen = [part in free] * (now[part].shape[1] - 1) + [offsets[part] in free]
        weights[part] = _regressed(regression, now[part], torch.tensor(chosen))
        factors[part] = getattr(parameters, f"{part}_factor")
        if noises[part] in free and regression.terms:
            factors[part] = _noise(regression, weights[part], noises[part])
    return Parameters(
        transition=weights["transition"][:, :-1],
        transition_factor=factors["transition"],
        emission=weights["emission"][:, :-1],
        emission_factor=factors["emission"],
        initial_mean=weights["initial"][:, 0],
        initial_factor=factors["initial"],
        latent_offset=weights["transition"][:, -1],
        emission_offset=weights["emission"][:, -1],
    )


def _regressed(regression: Regression, weights: Tensor, free_I: Tensor) -> Tensor:
    """W of y = W x + noise by least squares in the free columns."""
    if not free_I.any() or not regression.terms:
        return weights
    left = regression.yx[:, free_I] - weights[:, ~free_I] @ regression.xx[~free_I][:, free_I]
    solved = torch.linalg.solve(regression.xx[free_I][:, free_I], left, left=False)
    return weights.index_copy(1, free_I.nonzero()[:, 0], solved)


def _noise(regression: Regression, weights: Tensor, name: str) -> Tensor:
    """Cholesky factor of the covariance of y - W x."""
    factor, failed = torch.linalg.cholesky_ex(regression.spread(weights) / regression.terms)
    if failed:
        raise ValueError(f"{name}: these series leave no noise in some direction; leave it out of `free`")
    return factor


def fit_by_gradient(
    start: LinearGaussian,
    x_BTC: np.ndarray,
    observed_BTC: np.ndarray | None = None,
    free: Collection[str] = FREE,
    steps: int = 500,
    tolerance: float = 1e-6,
    skip: int = 0,
) -> Fit:
    """L-BFGS over the free parameters, with the logarithms of the diagonals of noise factors.

    `skip` leaves out the terms of the first steps, as in `log_likelihood`. It stops when no entry of the gradient
    exceeds `tolerance` times the number of series and steps.

    Raises:
        ValueError: `free` has an unknown name, or a noise does not have full rank.
    """
    from scipy.optimize import minimize

    _check(free)
    x, observed = _tensors(start, x_BTC, observed_BTC)
    fixed = parameters_of(start)
    names = [TENSORS[name] for name in TENSORS if name in free]
    values = {name: getattr(fixed, name) for name in names}
    first = [packed_of(value) if name.endswith("factor") else value for name, value in values.items()]
    sizes = [tensor.numel() for tensor in first]
    scale = x.shape[0] * x.shape[1]

    def parameters_at(raw: Tensor) -> Parameters:
        parts = [part.view_as(like) for part, like in zip(raw.split(sizes), first, strict=True)]
        made = [factor_of(p) if n.endswith("factor") else p for n, p in zip(names, parts, strict=True)]
        return fixed._replace(**dict(zip(names, made, strict=True)))

    def objective(raw: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(raw, requires_grad=True)
        value = log_likelihood_with_gradient(parameters_at(leaf), x, observed, skip)
        if not value.isfinite():
            return np.inf, np.zeros_like(raw)  # a step of the line search that went too far
        (gradient,) = torch.autograd.grad(value, leaf)
        return -float(value.detach()) / scale, -gradient.numpy() / scale

    log_likelihoods = []
    at = np.concatenate([tensor.flatten().numpy() for tensor in first])
    found = minimize(
        objective,
        at,
        jac=True,
        method="L-BFGS-B",
        callback=lambda raw: log_likelihoods.append(-objective(raw)[0] * scale),
        options={"maxiter": steps, "gtol": tolerance, "ftol": 1e-14, "maxcor": 30},
    )
    reached = [-objective(at)[0] * scale, *log_likelihoods]
    return Fit(model_of(parameters_at(torch.tensor(found.x))), reached, bool(found.success))


def log_likelihood_with_gradient(parameters: Parameters, x_BTC: Tensor, observed_BTC: Tensor, skip: int = 0) -> Tensor:
    """A scalar: log p(x) of all series, exact, whose gradient is exact too (Fisher's identity)."""
    total = _with_gradient(parameters, x_BTC, observed_BTC)
    if skip:
        total = total - _with_gradient(parameters, x_BTC[:, :skip], observed_BTC[:, :skip])
    return total


def _with_gradient(parameters: Parameters, x_BTC: Tensor, observed_BTC: Tensor) -> Tensor:
    with torch.no_grad():
        given = posterior(Parameters(*(tensor.detach() for tensor in parameters)), x_BTC, observed_BTC)
        expected = moments(given)
    surrogate = expected_log_likelihood(parameters, expected)
    return given.log_likelihood_B.sum() + surrogate - surrogate.detach()


def _tensors(model: LinearGaussian, x_BTC: np.ndarray, observed_BTC: np.ndarray | None) -> tuple[Tensor, Tensor]:
    _, observed = masked(model, x_BTC, observed_BTC)
    values = np.where(observed, np.asarray(x_BTC, dtype=np.float64), 0.0)
    return torch.from_numpy(values), torch.from_numpy(observed)


def _check(free: Collection[str]) -> None:
    for name in free:
        if name not in TENSORS:
            raise ValueError(f"free: {name!r} is not a parameter; the parameters are {', '.join(TENSORS)}")
