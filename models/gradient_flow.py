"""How much of a loss reaches the states that came before it: |dL/dh_t| against lag, for recurrent models.

L is the nats of a sequence's last target, read off the state h_T, and the lag is T - t: how many steps the gradient has
come back through. It shrinks or grows by about one factor a step (Bengio et al. 1994; Pascanu et al. 2013): a straight
line over lag on a logarithmic axis. Falling far, what lies that many steps back cannot be learnt from; rising, a step
of training is governed by it.

A fused kernel gives gradients at its ends only, so the sequence is read in stretches that end where a lag is asked for:
about two lags an octave, no loop over single steps.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reducible.models.contract import CarriesState
from reducible.models.loss import IGNORE, cross_entropy


@dataclass(frozen=True)
class GradientFlow:
    """Norms |dL/ds_t|, mean over sequences, of each part s of each layer's state."""

    lags: list[int]
    """Increasing; a subset of 1 .. T - 1."""
    norms: dict[str, list[float]]
    """By part: `hidden_1` (layer 1, next to the embedding), of an LSTM also `cell_1`; one number for each lag."""

    def factor(self, part: str) -> float:
        """What the norm is multiplied by in a step back, on average over all lags; below 1 it vanishes."""
        first, last = self.norms[part][0], self.norms[part][-1]
        steps = self.lags[-1] - self.lags[0]
        return (last / first) ** (1 / steps) if first > 0 and steps else float("nan")


def lags_of(length: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24 ... below the length."""
    powers = [2**exponent for exponent in range(length.bit_length())]
    return sorted({lag for power in powers for lag in (power, power * 3 // 2) if lag < length})


def gradient_flow(model: CarriesState, batch: dict[str, Tensor]) -> GradientFlow:
    """Of a language model that carries a state, on inputs and targets (B, T), dropout off; the model stays as it was.

    Rows whose last target is IGNORE are left out.

    Raises:
        ValueError: sequences of one step have no lag, or no row is whole.
    """
    rows = batch["targets"][:, -1] != IGNORE
    inputs_TB, targets_B = batch["inputs"][rows].T, batch["targets"][rows, -1]
    lags = lags_of(len(inputs_TB))
    if not lags or not len(targets_B):
        raise ValueError("gradient flow: needs whole sequences of at least two steps")
    was_training = model.training
    model.eval()
    for block in model.blocks():
        block.train()  # cuDNN has a backward in training mode only; dropout is the model's, and off
    borders = [0, *(len(inputs_TB) - lag for lag in reversed(lags)), len(inputs_TB)]
    with torch.enable_grad():
        states: list[Any] = [None] * len(model.blocks())
        reached: list[list[Any]] = []
        for start, end in pairwise(borders):
            h_TBD, states = model.advance(inputs_TB[start:end], states)
            reached.append(states)
        nats = cross_entropy(model.predict(h_TBD[-1]), targets_B).nats
        reached = reached[-2::-1]  # those at the lags, the shortest lag first; the end itself has none
        flat = [part for states in reached for state in states for part in state]
        gradients = iter(torch.autograd.grad(nats, flat))
    model.train(was_training)

    norms: dict[str, list[float]] = {}
    for states in reached:
        for layer, state in enumerate(states, start=1):
            for name, _ in zip(("hidden", "cell"), state, strict=False):
                mean = next(gradients).float().norm(dim=-1).mean().item()
                norms.setdefault(f"{name}_{layer}", []).append(mean)
    return GradientFlow(lags, norms)
