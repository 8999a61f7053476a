"""Approximate posteriors: the encoder's distribution of the latents given the values, q(z_1..T | x), in three forms.

    causal          q(z_t | x_<=t)             factorised; never tight, because the past does not tell what the future
                                               says about z_t
    bidirectional   q(z_t | x_1..T)            factorised; sees all values, but has no dependence between latents
    structured      q(z_t | z_t-1, x_t..T)     the form of the true posterior of a Markov model

Each has the methods

    read(x_TBX, lengths_B)              the encoder's features of the values, for every step
    sample(read_TBW, noise_TBL)         means, deviations and latents of all steps
    step(read_BW, z_BL)                 mean and deviation of the step after z_BL (None: of the first step)

and forward(x, lengths, noise) is sample(read(x, lengths), noise). Only the structured form has a loop over time, and
only in sampling.
"""

import torch
from torch import Tensor, nn

from reducible.models.layers.adapted_weights import adapted_weight
from reducible.models.layers.gaussian import positive, wide
from reducible.models.layers.lstm import LSTM
from reducible.models.layers.time_loops import Elman, SamplingLoop
from reducible.models.state_space.transitions import initialise, initialise_recurrent


def reverse(x_TBX: Tensor, lengths_B: Tensor) -> Tensor:
    """Each series reversed in time. The padding after its end stays there."""
    steps_T1 = torch.arange(x_TBX.shape[0], device=x_TBX.device)[:, None]
    turned_TB = torch.where(steps_T1 < lengths_B, lengths_B - 1 - steps_T1, steps_T1)
    rows_B = torch.arange(x_TBX.shape[1], device=x_TBX.device)
    flat = (turned_TB * x_TBX.shape[1] + rows_B).flatten()
    return x_TBX.flatten(0, 1).index_select(0, flat).view(x_TBX.shape)


def recurrence(cell: str, inputs: int, width: int) -> nn.RNNBase:
    return LSTM(inputs, width) if cell == "lstm" else Elman(inputs, width)


def recurrence_flops(cell: str, inputs: int, width: int) -> int:
    return (8 if cell == "lstm" else 2) * width * (width + inputs)


class FactorisedPosterior(nn.Module):
    """The factorised forms; `backwards` adds a second recurrence that reads from the end."""

    def __init__(self, inputs: int, latent: int, width: int, cell: str, backwards: bool) -> None:
        super().__init__()
        self.past = recurrence(cell, inputs, width)
        self.future = recurrence(cell, inputs, width) if backwards else None
        directions = 2 if backwards else 1
        self.head = nn.Linear(directions * width, 2 * latent)
        self.flops = directions * (recurrence_flops(cell, inputs, width) + 4 * width * latent)

    def reset_parameters(self) -> None:
        initialise_recurrent(self.past)
        if self.future is not None:
            initialise_recurrent(self.future)
        initialise(self.head)

    def read(self, x_TBX: Tensor, lengths_B: Tensor) -> Tensor:
        past_TBW, _ = self.past(x_TBX)
        if self.future is None:
            return past_TBW
        turned_TBW, _ = self.future(reverse(x_TBX, lengths_B))
        return torch.cat((past_TBW, reverse(turned_TBW, lengths_B)), dim=-1)

    def forward(self, x_TBX: Tensor, lengths_B: Tensor, noise_TBL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.sample(self.read(x_TBX, lengths_B), noise_TBL)

    def sample(self, read_TBW: Tensor, noise_TBL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean_TBL, deviation_TBL = self.step(read_TBW, None)
        return mean_TBL, deviation_TBL, mean_TBL + deviation_TBL * noise_TBL

    def step(self, read: Tensor, z_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of any number of steps, which do not depend on each other."""
        mean, raw = self.head(read).chunk(2, dim=-1)
        return wide(mean), positive(raw)


class StructuredPosterior(nn.Module):
    """The combiner of Krishnan, Shalit and Sontag 2017: the mean of tanh(W z_t-1) and the features of the future."""

    def __init__(self, inputs: int, latent: int, width: int, cell: str) -> None:
        super().__init__()
        self.future = recurrence(cell, inputs, width)
        self.before = nn.Linear(latent, width)
        self.head = nn.Linear(width, 2 * latent)
        self.first = nn.Parameter(torch.empty(latent))
        """Takes the place of the latent before the first one."""
        self.flops = recurrence_flops(cell, inputs, width) + 2 * latent * width + 4 * width * latent

    def reset_parameters(self) -> None:
        initialise_recurrent(self.future)
        initialise(self.before)
        initialise(self.head)
        nn.init.zeros_(self.first)

    def read(self, x_TBX: Tensor, lengths_B: Tensor) -> Tensor:
        turned_TBW, _ = self.future(reverse(x_TBX, lengths_B))
        return reverse(turned_TBW, lengths_B)

    def forward(self, x_TBX: Tensor, lengths_B: Tensor, noise_TBL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.sample(self.read(x_TBX, lengths_B), noise_TBL)

    def sample(self, read_TBW: Tensor, noise_TBL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (self.first, adapted_weight(self.before), self.before.bias, adapted_weight(self.head), self.head.bias)
        with torch.autocast(read_TBW.device.type, enabled=False):
            mean_TBL, deviation_TBL, z_TBL = SamplingLoop.apply(
                wide(read_TBW), wide(noise_TBL), *(wide(weight) for weight in weights)
            )
        return mean_TBL, deviation_TBL, z_TBL

    def step(self, read_BW: Tensor, z_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        if z_BL is None:
            z_BL = self.first.expand(read_BW.shape[0], -1)
        both_BW = 0.5 * (self.before(z_BL.to(read_BW.dtype)).tanh() + read_BW)
        mean_BL, raw_BL = self.head(both_BW).chunk(2, dim=-1)
        return wide(mean_BL), positive(raw_BL)
