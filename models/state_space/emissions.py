"""Emissions: the distribution of the values of a step given its latent, p(x_t | z_t), independent for each channel.

Every emission has `forward(z)`, the parameters of the distribution for latents (..., L); `log_prob(parameters, x)`, the
nats (..., C) of values; `sample(parameters)`, values (..., C); and `flops` per series and step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.layers.gaussian import gaussian_log_prob, positive, raw_of, wide
from reducible.models.state_space.transitions import initialise


class Emission(nn.Module):
    """A network of `depth` hidden layers of `width` (0: a linear map) from the latent to `outputs` numbers."""

    def __init__(self, latent: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        sizes = [latent, *[width] * depth, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.flops = sum(2 * a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    def reset_parameters(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            initialise(layer)

    def forward(self, z: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            z = layer(z).relu()
        return wide(last(z))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, parameters: Tensor) -> Tensor:
        raise NotImplementedError


class GaussianEmission(Emission):
    """Mean from the latent; one deviation for each channel. Parameters (..., C, 2): mean and deviation."""

    def __init__(self, latent: int, width: int, depth: int, channels: int) -> None:
        super().__init__(latent, width, depth, channels)
        self.raw = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.raw, raw_of(1.0))

    def forward(self, z: Tensor) -> Tensor:
        # Here, not in log_prob, because a sharded module has its whole parameters only inside forward.
        mean = super().forward(z)
        return torch.stack((mean, positive(self.raw).to(mean.dtype).expand(mean.shape)), dim=-1)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mean, deviation = parameters.unbind(-1)
        return gaussian_log_prob(x, mean, deviation)

    def sample(self, parameters: Tensor) -> Tensor:
        mean, deviation = parameters.unbind(-1)
        return mean + deviation * torch.randn_like(mean)


class KnownEmission(GaussianEmission):
    """x_t = C z_t + D psi_t with given C and diagonal D. Nothing is trained."""

    matrix: Tensor
    deviation: Tensor

    def __init__(self, matrix: Tensor, deviation: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("matrix", matrix)
        self.register_buffer("deviation", deviation)
        self.flops = 2 * matrix.numel()

    def reset_parameters(self) -> None:
        """There are none."""

    def forward(self, z: Tensor) -> Tensor:
        mean = z @ self.matrix.t()
        return torch.stack((mean, self.deviation.expand(mean.shape)), dim=-1)


class BernoulliEmission(Emission):
    """Values 0 and 1, such as the keys of a piano."""

    def __init__(self, latent: int, width: int, depth: int, channels: int) -> None:
        super().__init__(latent, width, depth, channels)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(parameters, x, reduction="none")

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.bernoulli(parameters.sigmoid())


class CategoricalEmission(Emission):
    """Every channel holds a class, a whole number from 0 to categories - 1."""

    def __init__(self, latent: int, width: int, depth: int, channels: int, categories: int) -> None:
        super().__init__(latent, width, depth, channels * categories)
        self.categories = categories

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).unflatten(-1, (-1, self.categories))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logs = parameters.log_softmax(-1)
        return logs.gather(-1, x.long()[..., None]).squeeze(-1)

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=parameters).sample().to(parameters.dtype)
