"""Estimates of log p(x) of a deep state-space model, and its forecasts, by weighted latents.

Both estimates draw latents from the encoder q and weight them by p(x, z) / q(z | x). The expected weight is p(x).
Therefore the logarithm of the mean of finitely many weights is below log p(x) on average, and nearer to it with more
weights (Burda, Grosse and Salakhutdinov 2016):

    importance    weights whole series: the ELBO with the average inside the logarithm
    particle      weights step by step, and replaces poor latents by copies of good ones as soon as too few carry the
                  weight (Gordon et al. 1993; Maddison et al. 2017); better for long series

Axes: T steps, B series, L latents, P particles; rows are particles x series, particles first.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from reducible.models.layers.gaussian import gaussian_log_prob
from reducible.models.state_space.transitions import State


class StateSpaceModel(Protocol):
    """What these functions need of a model (models/families/ssm.py)."""

    posterior: Any
    """q (models/state_space/approximate_posteriors.py)."""
    transition: Any
    emission: Any
    config: Any
    """It has the fields width and latents."""

    def inputs(self, x_TBC: Tensor, observed_TBC: Tensor) -> Tensor:
        """What the encoder reads."""
        ...


NUMBERS_AT_ONCE = 2**24
"""The most numbers of the widest activation, which limits the particles that `importance` holds at a time."""


def importance(model: StateSpaceModel, batch: dict[str, Tensor], particles: int) -> Tensor:
    """The logarithm of the mean of `particles` weights of whole series (B,), float64."""
    seen = _Seen(model, batch)
    T, B = seen.steps_TB.shape
    at_once = max(1, NUMBERS_AT_ONCE // (T * B * 4 * model.config.width))
    total_B = torch.full((B,), -math.inf, dtype=torch.float64, device=seen.steps_TB.device)
    for start in range(0, particles, at_once):
        count = min(at_once, particles - start)
        noise_TRL = torch.randn(T, count * B, model.config.latents, device=seen.x_TBC.device, dtype=seen.x_TBC.dtype)
        mean_TRL, deviation_TRL, z_TRL = model.posterior.sample(seen.read_TBW.repeat(1, count, 1), noise_TRL)
        prior_mean_TRL, prior_deviation_TRL = model.transition(z_TRL)
        gain_TR = gaussian_log_prob(z_TRL, prior_mean_TRL, prior_deviation_TRL).sum(-1)
        gain_TR = gain_TR - gaussian_log_prob(z_TRL, mean_TRL, deviation_TRL).sum(-1)
        nats_TRC = model.emission.log_prob(model.emission(z_TRL), seen.x_TBC.repeat(1, count, 1))
        gain_TR = gain_TR + torch.where(seen.observed_TBC.repeat(1, count, 1), nats_TRC, 0.0).sum(-1)
        gain_TR = torch.where(seen.steps_TB.repeat(1, count), gain_TR.double(), 0.0)
        total_B = torch.logaddexp(total_B, gain_TR.sum(0).view(count, B).logsumexp(0))
    return total_B - math.log(particles)


class Filtered(NamedTuple):
    """Particles after the last step of each series, of equal weight."""

    log_likelihood_B: Tensor
    """float64."""
    z_RL: Tensor
    state: State


def particle_filter(model: StateSpaceModel, batch: dict[str, Tensor], particles: int) -> Filtered:
    """Particles moved and weighted step by step, with systematic resampling if the effective number of them
    (1 / sum of squared weights) falls below half. The loop over time cannot be avoided: resampling couples the steps.
    """
    seen = _Seen(model, batch)
    T, B = seen.steps_TB.shape
    total_B = torch.zeros(B, dtype=torch.float64, device=seen.steps_TB.device)
    weight_PB = torch.zeros(particles, B, dtype=torch.float64, device=seen.steps_TB.device)
    z_RL = torch.empty(0)
    state: State = ()
    for t in range(T):
        rows = seen.steps_TB[t].repeat(particles)
        read_RW = seen.read_TBW[t].repeat(particles, 1)
        if t == 0:
            prior_mean_RL, prior_deviation_RL, next_state = model.transition.start(particles * B)
            mean_RL, deviation_RL = model.posterior.step(read_RW, None)
        else:
            poor_B = effective_number(weight_PB) < particles / 2
            z_RL, state, weight_PB, total_B = _resampled(z_RL, state, weight_PB, total_B, poor_B)
            prior_mean_RL, prior_deviation_RL, next_state = model.transition.step(z_RL, state)
            mean_RL, deviation_RL = model.posterior.step(read_RW, z_RL)
        next_RL = mean_RL + deviation_RL * torch.randn_like(mean_RL)
        gain_R = gaussian_log_prob(next_RL, prior_mean_RL, prior_deviation_RL).sum(-1)
        gain_R = gain_R - gaussian_log_prob(next_RL, mean_RL, deviation_RL).sum(-1)
        nats_RC = model.emission.log_prob(model.emission(next_RL), seen.x_TBC[t].repeat(particles, 1))
        gain_R = gain_R + torch.where(seen.observed_TBC[t].repeat(particles, 1), nats_RC, 0.0).sum(-1)
        # A series that has ended keeps its particles as they are.
        weight_PB = weight_PB + torch.where(rows, gain_R.double(), 0.0).view(particles, B)
        if t == 0:
            z_RL, state = next_RL, next_state
        else:
            z_RL = torch.where(rows[:, None], next_RL, z_RL)
            state = tuple(torch.where(rows[:, None], new, old) for new, old in zip(next_state, state, strict=True))
    everyone_B = torch.ones(B, dtype=torch.bool, device=total_B.device)
    z_RL, state, _, total_B = _resampled(z_RL, state, weight_PB, total_B, everyone_B)
    return Filtered(total_B, z_RL, state)


def forecast(
    model: StateSpaceModel, batch: dict[str, Tensor], horizon: int, samples: int, particles: int = 1
) -> Tensor:
    """Values of the steps after each series (samples, B, horizon, C), drawn from p(x_T+1.. | x_1..T).

    The filter has `particles` particles for each sample; one of them, at equal distances, continues.
    """
    filtered = particle_filter(model, batch, samples * particles)
    B = len(batch["steps"])
    z_RL, *state_parts = (
        part.unflatten(0, (samples, particles, B))[:, 0].flatten(0, 1) for part in (filtered.z_RL, *filtered.state)
    )
    state = tuple(state_parts)
    drawn = []
    for _ in range(horizon):
        mean_RL, deviation_RL, state = model.transition.step(z_RL, state)
        z_RL = mean_RL + deviation_RL * torch.randn_like(deviation_RL)
        drawn.append(model.emission.sample(model.emission(z_RL)))
    return torch.stack(drawn, dim=1).unflatten(0, (samples, -1))


def effective_number(weight_PB: Tensor) -> Tensor:
    """(B,) effective number of particles: 1 / sum of squared normalised weights (Kish)."""
    return torch.exp(2 * weight_PB.logsumexp(0) - (2 * weight_PB).logsumexp(0))


def _resampled(
    z_RL: Tensor, state: State, weight_PB: Tensor, total_B: Tensor, which_B: Tensor
) -> tuple[Tensor, State, Tensor, Tensor]:
    """In the series of `which_B`: draws particles by weight, resets their weights, adds their mean to the total."""
    particles, B = weight_PB.shape
    device = weight_PB.device
    share_BP = weight_PB.softmax(0).t().contiguous()
    # Systematic: one uniform number for each series, then equal distances (Kitagawa 1996).
    start_B1 = torch.rand(B, 1, dtype=share_BP.dtype, device=device)
    position_BP = (torch.arange(particles, device=device) + start_B1) / particles
    chosen_BP = torch.searchsorted(share_BP.cumsum(1), position_BP).clamp_(max=particles - 1)
    chosen_PB = torch.where(which_B, chosen_BP.t(), torch.arange(particles, device=device)[:, None])
    rows = (chosen_PB * B + torch.arange(B, device=device)).flatten()
    mean_B = weight_PB.logsumexp(0) - math.log(particles)
    return (
        z_RL[rows],
        tuple(part[rows] for part in state),
        torch.where(which_B, 0.0, weight_PB),
        torch.where(which_B, total_B + mean_B, total_B),
    )


class _Seen:
    """A batch with time as the first axis, and the encoder's features of it."""

    def __init__(self, model: StateSpaceModel, batch: dict[str, Tensor]) -> None:
        self.x_TBC, self.observed_TBC = batch["values"].transpose(0, 1), batch["observed"].transpose(0, 1)
        self.steps_TB = batch["steps"].t()
        self.read_TBW = model.posterior.read(model.inputs(self.x_TBC, self.observed_TBC), self.steps_TB.sum(0))
