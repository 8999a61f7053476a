"""Transitions: mean and deviation of a latent given those before it, p(z_t | z_<t), independent for each coordinate.

Every transition has three methods, and `flops` per series and step:

    forward(z_TBL)        means and deviations of all T steps at once, given the latents of all steps
    start(rows)           mean, deviation and state of the first step, for `rows` series
    step(z_BL, state)     the same for the step after z_BL
"""

import math

import torch
from torch import Tensor, nn

from reducible.models.layers.gaussian import positive, raw_of
from reducible.models.layers.lstm import LSTM

State = tuple[Tensor, ...]
"""The state of a transition. Every tensor has one row for each series."""


def initialise(linear: nn.Linear, bias: float = 0.0) -> None:
    """The width rule's deviation for a hidden matrix, 1 / sqrt(fan in)."""
    nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
    nn.init.constant_(linear.bias, bias)


@torch.no_grad()
def initialise_recurrent(recurrent: nn.RNNBase) -> None:
    """Matrices by the width rule, biases 0; the forget gates of an LSTM start at 1 (Jozefowicz et al. 2015)."""
    for name, parameter in recurrent.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
        else:
            nn.init.zeros_(parameter)
            if isinstance(recurrent, nn.LSTM) and name.startswith("bias_ih"):
                parameter[recurrent.hidden_size : 2 * recurrent.hidden_size] = 1.0


class LstmTransition(nn.Module):
    """An LSTM over the past latents gives mean and deviation. All steps are one fused call."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(latent))
        """The input of the first step, which has no latent before it."""
        self.width = width
        self.lstm = LSTM(latent, width)
        self.head = nn.Linear(width, 2 * latent)
        self.flops = 8 * width * (width + latent) + 4 * width * latent

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.first)
        initialise_recurrent(self.lstm)
        initialise(self.head)

    def forward(self, z_TBL: Tensor) -> tuple[Tensor, Tensor]:
        first_1BL = self.first.to(z_TBL.dtype).expand(1, z_TBL.shape[1], -1)
        h_TBW, _ = self.lstm(torch.cat((first_1BL, z_TBL[:-1])))
        return self._distribution(h_TBW)

    def start(self, rows: int) -> tuple[Tensor, Tensor, State]:
        zeros_BW = self.first.new_zeros(rows, self.width)
        return self.step(self.first.expand(rows, -1), (zeros_BW, zeros_BW))

    def step(self, z_BL: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        h_BW, c_BW = state
        _, (h_1BW, c_1BW) = self.lstm(z_BL[None], (h_BW[None], c_BW[None]))
        return *self._distribution(h_1BW[0]), (h_1BW[0], c_1BW[0])

    def _distribution(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.head(h).chunk(2, dim=-1)
        return mean, positive(raw)


class MarkovTransition(nn.Module):
    """p(z_t | z_t-1) by a function of z_t-1 alone."""

    flops: int

    def forward(self, z_TBL: Tensor) -> tuple[Tensor, Tensor]:
        mean_1BL, deviation_1BL, _ = self.start(z_TBL.shape[1])
        mean_SBL, deviation_SBL = self.after(z_TBL[:-1])
        return (
            torch.cat((mean_1BL[None].to(mean_SBL.dtype), mean_SBL)),
            torch.cat((deviation_1BL[None], deviation_SBL)),
        )

    def start(self, rows: int) -> tuple[Tensor, Tensor, State]:
        raise NotImplementedError

    def step(self, z_BL: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return *self.after(z_BL), state

    def after(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the next latent, for any number of latents (..., L) at once."""
        raise NotImplementedError


class LearntTransition(MarkovTransition):
    """p(z_1) has a mean and a deviation of its own."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.first_mean = nn.Parameter(torch.empty(latent))
        self.first_raw = nn.Parameter(torch.empty(latent))
        """The deviation before `positive`."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.first_mean)
        nn.init.constant_(self.first_raw, raw_of(1.0))

    def start(self, rows: int) -> tuple[Tensor, Tensor, State]:
        return self.first_mean.expand(rows, -1), positive(self.first_raw).expand(rows, -1), ()


class GatedTransition(LearntTransition):
    """Gates choose between a linear map and a network (Krishnan, Shalit and Sontag 2017, section 5)."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__(latent)
        # One product for the hidden layers of the gate and of the proposed mean.
        self.inside = nn.Linear(latent, 2 * width)
        self.gate = nn.Linear(width, latent)
        self.proposed = nn.Linear(width, latent)
        self.linear = nn.Linear(latent, latent)
        self.deviation = nn.Linear(latent, latent)
        self.flops = 2 * (4 * latent * width + 2 * latent * latent)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for linear in (self.inside, self.gate, self.proposed, self.deviation):
            initialise(linear)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def after(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate_inside, proposed_inside = self.inside(z).relu().chunk(2, dim=-1)
        gate = self.gate(gate_inside).sigmoid()
        proposed = self.proposed(proposed_inside)
        mean = torch.lerp(self.linear(z), proposed, gate)
        return mean, positive(self.deviation(proposed.relu()))


class LinearTransition(LearntTransition):
    """z_t = A z_t-1 + b + q e_t with e_t standard normal: the latent of a linear-Gaussian model."""

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.matrix = nn.Linear(latent, latent)
        self.raw = nn.Parameter(torch.empty(latent))
        self.flops = 2 * latent * latent

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.eye_(self.matrix.weight)
        self.matrix.weight.data.mul_(0.9)
        nn.init.zeros_(self.matrix.bias)
        nn.init.constant_(self.raw, raw_of(0.5))

    def after(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.matrix(z)
        return mean, positive(self.raw).expand(mean.shape)


class KnownTransition(MarkovTransition):
    """z_t = A z_t-1 + B e_t with given A and B. It starts from its stationary distribution, and nothing is trained.

    The coordinates are independent given the latent before, and at the first step. Therefore B and the stationary
    covariance P = A P A' + B B' must be diagonal.
    """

    matrix: Tensor
    deviation: Tensor
    first_deviation: Tensor

    def __init__(self, matrix: Tensor, deviation: Tensor, first_deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("deviation", deviation)
        self.register_buffer("first_deviation", first_deviation)
        self.flops = 2 * matrix.numel()

    def reset_parameters(self) -> None:
        """There are none."""

    def start(self, rows: int) -> tuple[Tensor, Tensor, State]:
        deviation_BL = self.first_deviation.expand(rows, -1)
        return torch.zeros_like(deviation_BL), deviation_BL, ()

    def after(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = z @ self.matrix.t()
        return mean, self.deviation.expand(mean.shape)
