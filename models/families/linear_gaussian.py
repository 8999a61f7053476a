"""The linear-Gaussian state-space model as a family that trains like any other: exact likelihood, exact gradient.

Its loss is -log p(x) itself, not a bound. One pass in float64 over the posterior's precision gives likelihood and
gradient (models/kalman/precision_form.py). By Fisher's identity the gradient of log p(x) is that of the expected
log p(x, z). Autograd therefore sees a few small matrices and never the recursion over time. Series of a batch that miss
the same values share everything except their means.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reducible.models.config import ModelConfig
from reducible.models.contract import Family, SeriesModel
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.kalman.filter import LinearGaussian
from reducible.models.kalman.fit import log_likelihood_with_gradient
from reducible.models.kalman.precision_form import Parameters, factor_of, model_of, packed_of, parameters_of, posterior
from reducible.models.layers.width_rule import ParameterGroup
from reducible.models.loss import Loss

BASE_LATENTS = 8
"""The width at which matrices have the learning rate of vectors. Measured on sunspots (390 steps of 512) with a base of
1, 8 and 64, in nats per step. With the best learning rate of 4e-3, 1.6e-2 and 6e-2: width 4 0.568, 0.569, 0.570; width
16 0.508, 0.514, 0.537. With 1.6e-2 at both widths: 0.569, 0.569, 0.570 and 0.526, 0.515, 0.559."""


@dataclass(frozen=True)
class LinearGaussianConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    channels: int
    """The number of values at a step, which the data decide."""
    width: int = 8
    """The number of latents."""

    def __post_init__(self) -> None:
        self.require_whole("channels")
        self.require_whole("width", most=4096)  # a step inverts matrices of this side in float64


class LinearGaussianModel(SeriesModel):
    """z_t = A z_{t-1} + b + B e_t, x_t = C z_t + c + D psi_t; B and D lower triangular (models/kalman/filter.py)."""

    config: LinearGaussianConfig
    compiles = False
    """Its work is linear algebra in float64, which a compiler does not change."""
    stochastic = False
    exact = True
    """Its loss is the likelihood, and its forecasts have a closed form."""

    def __init__(self, config: LinearGaussianConfig) -> None:
        super().__init__(config)
        channels, width = config.channels, config.width
        self.transition = nn.Parameter(torch.empty(width, width))
        self.emission = nn.Parameter(torch.empty(channels, width))
        self.transition_noise = nn.Parameter(torch.empty(triangle(width)))
        """B by rows, with the logarithms of its diagonal (`factor_of`). The two below have the same form."""
        self.emission_noise = nn.Parameter(torch.empty(triangle(channels)))
        self.initial_noise = nn.Parameter(torch.empty(triangle(width)))
        self.initial_mean = nn.Parameter(torch.empty(width))
        self.latent_offset = nn.Parameter(torch.empty(width))
        self.emission_offset = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws latents of variance 1 that rotate in pairs and forget within 2 to 200 steps, evenly in the logarithm.

        A latent that forgets in n steps loses the share 1/n in each step. Each value gets a random mixture of latents.
        """
        width = self.config.width
        memory = 2 * 100 ** (torch.arange(width) // 2 * 2 / max(1, width - 1))
        decay = 1 - 1 / memory
        nn.init.zeros_(self.transition)
        self.transition.diagonal().copy_(decay)
        for first in range(0, width - 1, 2):
            angle = float(torch.rand((), device="cpu")) * math.pi / 4
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            self.transition[first : first + 2, first : first + 2] = turn * decay[first]
        self.transition_noise.copy_(packed_of((1 - decay**2).sqrt().diag()))
        self.emission_noise.copy_(packed_of(math.sqrt(0.5) * torch.eye(self.config.channels)))
        self.initial_noise.copy_(packed_of(torch.eye(width)))
        nn.init.normal_(self.emission, std=math.sqrt(0.5 / width))
        for vector in (self.initial_mean, self.latent_offset, self.emission_offset):
            nn.init.zeros_(vector)

    def parameters_in_double(self) -> Parameters:
        """The parameters as models/kalman/precision_form.py takes them. Gradients pass through."""
        return Parameters(
            transition=self.transition.double(),
            transition_factor=factor_of(self.transition_noise.double()),
            emission=self.emission.double(),
            emission_factor=factor_of(self.emission_noise.double()),
            initial_mean=self.initial_mean.double(),
            initial_factor=factor_of(self.initial_noise.double()),
            latent_offset=self.latent_offset.double(),
            emission_offset=self.emission_offset.double(),
        )

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """-log p(x), exact, from values (B, T, C), observed (B, T, C) bool and steps (B, T) bool.

        A step after the end of a series is a step with all values missing, which adds nothing.
        """
        parameters, units = self.parameters_in_double(), batch["steps"].sum()
        if torch.is_grad_enabled():
            total = log_likelihood_with_gradient(parameters, batch["values"], batch["observed"])
        else:
            total = posterior(parameters, batch["values"], batch["observed"]).log_likelihood_B.sum()
        return Loss(-total.float(), units, {})

    @torch.no_grad()
    def log_likelihood(self, batch: dict[str, Tensor], particles: int = 1, method: str = "exact") -> Tensor:
        """log p(x) of every series (B,) float64. It is exact, so the settings change nothing."""
        return posterior(self.parameters_in_double(), batch["values"], batch["observed"]).log_likelihood_B

    @torch.no_grad()
    def forecast(self, batch: dict[str, Tensor], horizon: int, samples: int, particles: int = 1) -> Tensor:
        """Values of the steps that follow each series (samples, B, horizon, C), drawn from torch's generator."""
        p = self.parameters_in_double()
        mean_BD, covariance_BDD = self._last(p, batch)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, device=mean_BD.device)

        z_SBD = mean_BD + (torch.linalg.cholesky(covariance_BDD) @ noise(samples, *mean_BD.shape, 1))[..., 0]
        drawn = []
        for _ in range(horizon):
            z_SBD = z_SBD @ p.transition.mT + p.latent_offset + noise(*z_SBD.shape) @ p.transition_factor.mT
            mean_SBC = z_SBD @ p.emission.mT + p.emission_offset
            drawn.append(mean_SBC + noise(*mean_SBC.shape) @ p.emission_factor.mT)
        return torch.stack(drawn, dim=2).float()

    @torch.no_grad()
    def predict(self, batch: dict[str, Tensor], horizon: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, horizon, C) of the values that `forecast` draws. Each value is normal. float64."""
        p = self.parameters_in_double()
        mean_BD, covariance_BDD = self._last(p, batch)
        moved, read = p.transition_factor @ p.transition_factor.mT, p.emission_factor @ p.emission_factor.mT
        means, deviations = [], []
        for _ in range(horizon):
            mean_BD = mean_BD @ p.transition.mT + p.latent_offset
            covariance_BDD = p.transition @ covariance_BDD @ p.transition.mT + moved
            means.append(mean_BD @ p.emission.mT + p.emission_offset)
            covariance_BCC = p.emission @ covariance_BDD @ p.emission.mT + read
            deviations.append(covariance_BCC.diagonal(dim1=1, dim2=2).sqrt())
        return torch.stack(means, dim=1), torch.stack(deviations, dim=1)

    def _last(self, parameters: Parameters, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) of the latent at the last step of every series."""
        given = posterior(parameters, batch["values"], batch["observed"])
        covariance_GTDD, _ = given.factor.inverse_blocks()
        last_B = batch["steps"].sum(1) - 1
        rows = torch.arange(len(last_B), device=last_B.device)
        return given.mean_BTD[rows, last_B], covariance_GTDD[given.group_B, last_B]

    def known(self) -> LinearGaussian:
        """The model as models/kalman/filter.py and models/kalman/certificate.py take it."""
        return model_of(self.parameters_in_double())

    @torch.no_grad()
    def set(self, model: LinearGaussian) -> None:
        """Copies the parameters of a model, such as one from EM or a generated source; its noise has full rank."""
        given = parameters_of(model)
        for name in ("transition", "emission", "initial_mean", "latent_offset", "emission_offset"):
            getattr(self, name).copy_(getattr(given, name))
        for name in ("transition", "emission", "initial"):
            getattr(self, f"{name}_noise").copy_(packed_of(getattr(given, f"{name}_factor")))

    def blocks(self) -> list[nn.Module]:
        """An empty list: all parameters are needed at once, and nothing is held for backward."""
        return []

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups by the width rule, without weight decay, which would move the maximum away from the likelihood's.

        The base of the rule is BASE_LATENTS, not that of networks: the matrices have few rows, and the noise, whose
        logarithms are learnt, must keep up with them.
        """
        matrices = [p for p in self.parameters() if p.ndim == 2]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        rate = BASE_LATENTS / self.config.width
        return [ParameterGroup("matrices", matrices, rate, 0.0), ParameterGroup("vectors", vectors, 1.0, 0.0)]


def triangle(size: int) -> int:
    """The number of entries of a lower triangular matrix."""
    return size * (size + 1) // 2


def linear_gaussian_remembers(config: LinearGaussianConfig, element: int) -> Remembered:
    return Remembered("mean and covariance of the latent, float64", 8 * (config.width + config.width**2), 0)


def linear_gaussian_cost(config: LinearGaussianConfig, lengths: Lengths) -> Cost:
    """Parameters, and FLOPs per step of one complete series (conventions: models/cost/ledger.py).

    Only matrix products count, as in torch's counter: not Cholesky factors, triangular solves or inverses, and not what
    a batch needs once. Complete series of a batch share the covariances, and with them all work that grows with the
    cube of the latents. Like any saving it shows in the speed, not in the ledger. Training is not three times forward:
    the gradient costs as much as the posterior covariances.
    """
    C, D = config.channels, config.width
    # Cyclic reduction eliminates all steps but one, and a transition has one step less than the series.
    inner = 1 - 1 / lengths.target
    factorise, solve, invert = 6 * D**3, 8 * D**2, 12 * D**3
    forward = inner * (factorise + solve + 2 * D**2) + 4 * C * D + 2 * C**2
    moments = inner * (invert + 4 * D**2) + 4 * D**2 + 2 * C**2 + 2 * C * D
    parameters = D**2 + C * D + 2 * triangle(D) + triangle(C) + 2 * D + C
    return Cost(
        family="linear-gaussian",
        parameters=parameters,
        parameters_without_embeddings=parameters,
        forward_flops_per_unit=forward,
        training_flops_per_unit=forward + moments,
        checkpointing_flops_per_unit=0.0,
        activation_elements_per_unit=0.0,
        checkpointed_elements_per_unit=0.0,
    )


FAMILY = Family(
    "linear-gaussian", LinearGaussianConfig, LinearGaussianModel, linear_gaussian_cost, linear_gaussian_remembers
)
