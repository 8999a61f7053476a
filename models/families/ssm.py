"""Deep state-space model: a transition moves the latents, an emission gives the values of a step from its latent alone,
and an encoder approximates the posterior.

    p(x, z) = prod_t p(z_t | z_<t) p(x_t | z_t)         transition and emission
    log p(x) >= E_q [ log p(x, z) - log q(z | x) ]      the ELBO, which `forward` returns for training

(Chung et al. 2015; Krishnan, Shalit and Sontag 2017.) Given the latents before a step, its Kullback-Leibler term
KL(q(z_t) || p(z_t | z_<t)) is exact. It is averaged over one draw of these latents.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from reducible.models.config import DEEPEST, ModelConfig
from reducible.models.contract import Family, SeriesModel
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.kalman.model import LinearGaussian
from reducible.models.layers.gaussian import gaussian_kl
from reducible.models.layers.width_rule import ParameterGroup, hidden_rate
from reducible.models.loss import Loss, Unsayable
from reducible.models.state_space.approximate_posteriors import FactorisedPosterior, StructuredPosterior
from reducible.models.state_space.emissions import (
    BernoulliEmission,
    CategoricalEmission,
    Emission,
    GaussianEmission,
    KnownEmission,
)
from reducible.models.state_space.particles import forecast, importance, particle_filter
from reducible.models.state_space.transitions import GatedTransition, KnownTransition, LinearTransition, LstmTransition

TRANSITIONS = ("lstm", "gated", "linear")
EMISSIONS = ("gaussian", "bernoulli", "categorical")
POSTERIORS = ("causal", "bidirectional", "structured")
CELLS = ("lstm", "elman")

KEYS = {"transition": "A", "transition_noise": "B", "emission": "C", "emission_noise": "D", "initial_covariance": "A"}
"""Keys of a known model, by what models/kalman/model.py calls them."""
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SsmConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    channels: int
    """The number of values at a step, which the data decide."""
    width: int = 64
    """Width of the encoder's recurrence, and the default of the other widths."""
    latent: int | None = None
    """Coordinates of z_t. None: half the width."""
    transition: str = "lstm"
    """lstm: reads all past latents; gated: reads the last one (deep Markov model); linear: A z + b."""
    transition_width: int | None = None
    emission: str = "gaussian"
    emission_width: int | None = None
    emission_depth: int = 2
    """Number of hidden layers between latent and values. 0: a linear map."""
    categories: int = 2
    """For a categorical emission: the number of classes of every channel, which are numbered from 0."""
    posterior: str = "causal"
    cell: str = "lstm"
    """The encoder's cell: lstm, or elman with tanh."""
    kl_start: float = 1.0
    """Weight of the Kullback-Leibler term at the first step; it rises linearly to 1."""
    kl_rise: float = 0.2
    """Share of the run in which the weight rises."""
    dropout: float = 0.0
    """Dropout on the values that the encoder reads."""
    A: Matrix | None = None
    """With B, C and D: a known linear-Gaussian model z_t = A z_t-1 + B e_t, x_t = C z_t + D psi_t, B and D diagonal.
    Only the encoder is trained, and its distance from log p(x) is known exactly (docs/state-space.md)."""
    B: Matrix | None = None
    C: Matrix | None = None
    D: Matrix | None = None

    def __post_init__(self) -> None:
        self.require_whole("channels", "width")
        self.require_whole("latent", "transition_width", "emission_width", or_none=True)
        self.require_whole("emission_depth", least=0, most=DEEPEST)
        self.require_whole("categories", least=2)
        self.require_one_of("transition", TRANSITIONS)
        self.require_one_of("emission", EMISSIONS)
        self.require_one_of("posterior", POSTERIORS)
        self.require_one_of("cell", CELLS)
        self.require_number("kl_start", "kl_rise", least=0, most=1)
        self.require_number("dropout", least=0, below=1)
        if any(getattr(self, name) is not None for name in "ABCD"):
            self._check_known()

    def _check_known(self) -> None:
        for name in "ABCD":
            rows = getattr(self, name)
            if rows is None:
                raise ValueError(f"model.{name}: is missing; a known model needs all of A, B, C and D")
            # JSON has lists. Tuples can be compared and hashed.
            object.__setattr__(self, name, tuple(tuple(float(cell) for cell in row) for row in rows))
        assert self.A is not None and self.C is not None
        states = len(self.A)
        for name, height, width in (
            ("A", states, states),
            ("B", states, states),
            ("C", self.channels, states),
            ("D", self.channels, self.channels),
        ):
            rows = getattr(self, name)
            if len(rows) != height or any(len(row) != width for row in rows):
                raise ValueError(
                    f"model.{name}: must be {height} x {width}, to match A and the data's {self.channels} channels"
                )
        for name in "BD":
            matrix = np.array(getattr(self, name))
            if (matrix != np.diag(np.diag(matrix))).any() or (np.diag(matrix) <= 0).any():
                raise ValueError(f"model.{name}: must be diagonal with numbers above 0")
        if (self.emission, self.latent) != ("gaussian", None):
            raise ValueError("model.A: a known model has its own emission and latent; leave both out")
        try:
            known = self.known
        except ValueError as error:
            part, _, wrong = str(error).partition(": ")
            raise ValueError(f"model.{KEYS.get(part, 'A')}: {wrong or part}") from None
        assert known is not None
        P = known.initial_covariance
        if np.abs(P - np.diag(np.diag(P))).max() > 1e-9 * np.abs(P).max():
            raise ValueError(
                "model.A: the coordinates of a known model's first latent must be independent; make A diagonal"
            )

    @property
    def known(self) -> LinearGaussian | None:
        """The model of A, B, C and D, long running; None: p is learnt."""
        if self.A is None or self.B is None or self.C is None or self.D is None:
            return None
        return LinearGaussian.long_running(self.A, self.B, self.C, self.D)

    @property
    def latents(self) -> int:
        if self.A is not None:
            return len(self.A)
        return self.latent if self.latent is not None else max(1, self.width // 2)

    @property
    def inputs(self) -> int:
        """The number of values that the encoder reads at a step (StateSpace.inputs)."""
        per_channel = {"gaussian": 2, "bernoulli": 1, "categorical": self.categories}[self.emission]
        return self.channels * per_channel

    def scaled(self, width: int) -> "SsmConfig":
        """The ladder: this config at another width, with the latent and both networks in the same proportion."""
        if width < 2:
            raise ValueError(f"model.width: {width!r} must be at least 2")

        def part(size: int | None) -> int | None:
            return None if size is None else max(1, round(size * width / self.width))

        return replace(
            self,
            width=width,
            latent=part(self.latent),
            transition_width=part(self.transition_width),
            emission_width=part(self.emission_width),
        )


class StateSpace(SeriesModel):
    """The model. Inside, time is the first axis (x_TBC), because recurrences and the chain of latents run over it."""

    config: SsmConfig
    compiles = False
    """It draws random numbers and has an LSTM. Compiled, its gradients could be wrong, and it would be no faster."""
    stochastic = True

    def __init__(self, config: SsmConfig) -> None:
        super().__init__(config)
        latent, width = config.latents, config.width
        self.posterior: FactorisedPosterior | StructuredPosterior
        if config.posterior == "structured":
            self.posterior = StructuredPosterior(config.inputs, latent, width, config.cell)
        else:
            backwards = config.posterior == "bidirectional"
            self.posterior = FactorisedPosterior(config.inputs, latent, width, config.cell, backwards)
        self.transition = transition_of(config)
        self.emission = emission_of(config)
        self.kl_weight = config.kl_start
        self.checked = config.emission == "gaussian"
        self.reset_parameters()

    @property
    def form(self) -> str:
        return self.config.posterior

    @property
    def numeric(self) -> bool:
        return self.config.emission == "gaussian"

    def fixed(self) -> LinearGaussian | None:
        return self.config.known

    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator."""
        self.posterior.reset_parameters()
        self.transition.reset_parameters()
        self.emission.reset_parameters()

    def at_step(self, step: int, stop: int) -> frozenset[str]:
        """Sets the weight of the Kullback-Leibler term in this step's loss. Every parameter is updated."""
        config = self.config
        share = step / (config.kl_rise * stop) if config.kl_rise * stop > 0 else 1.0
        self.kl_weight = config.kl_start + (1 - config.kl_start) * min(1.0, share)
        return frozenset()

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """-ELBO from values (B, T, C), observed (B, T, C) bool and steps (B, T) bool, with one draw of the latents.

        In training the Kullback-Leibler term is weighted (see at_step). In evaluation it counts in full. The parts are
        both terms without the weight.
        """
        values = batch["values"]
        if not self.checked:
            self.check(values)
        rows, steps = values.shape[:2]
        noise_TBL = torch.randn(steps, rows, self.config.latents, device=values.device, dtype=values.dtype)
        return self.bound(batch, noise_TBL)

    def bound(self, batch: dict[str, Tensor], noise_TBL: Tensor) -> Loss:
        """`forward` with given noise: a latent is mean + deviation x noise."""
        x_TBC, observed_TBC = batch["values"].transpose(0, 1), batch["observed"].transpose(0, 1)
        steps_TB = batch["steps"].t()
        lengths_B = steps_TB.sum(0)
        mean_TBL, deviation_TBL, z_TBL = self.posterior(self.inputs(x_TBC, observed_TBC), lengths_B, noise_TBL)
        prior_mean_TBL, prior_deviation_TBL = self.transition(z_TBL)
        kl_TBL = gaussian_kl(mean_TBL, deviation_TBL, prior_mean_TBL, prior_deviation_TBL)
        nats_TBC = self.emission.log_prob(self.emission(z_TBL), x_TBC)
        # torch.where, not a product: a latent after the end of a series may be infinite or NaN.
        kl = torch.where(steps_TB[..., None], kl_TBL, 0.0).sum()
        reconstruction = -torch.where(observed_TBC, nats_TBC, 0.0).sum()
        weight = self.kl_weight if self.training else 1.0
        return Loss(
            reconstruction + weight * kl,
            lengths_B.sum(),
            {"kl": kl.detach(), "reconstruction": reconstruction.detach()},
        )

    def check(self, values: Tensor) -> None:
        """Checks that the emission can have such values: only on the first batch, because it waits for the device.

        Raises:
            Unsayable: it cannot; the line names one of the values.
        """
        classes = self.config.categories if self.config.emission == "categorical" else 2
        wrong = values[(values < 0) | (values >= classes) | (values != values.round())]
        if len(wrong):
            hint = ", or raise model.categories" if self.config.emission == "categorical" else ""
            raise Unsayable(
                f"model.emission: {self.config.emission} takes whole numbers from 0 to {classes - 1}; the data hold "
                f"{float(wrong[0]):g}; set data.standardise: false{hint}, or take gaussian"
            )
        self.checked = True

    def inputs(self, x_TBC: Tensor, observed_TBC: Tensor) -> Tensor:
        """The encoder's input: the values, and which of them are observed."""
        if self.config.emission == "gaussian":
            # 0 is an ordinary standardised value, so missing values are marked by channels of their own.
            x_TBX = torch.cat((x_TBC, observed_TBC.to(x_TBC.dtype)), dim=-1)
        elif self.config.emission == "bernoulli":
            x_TBX = torch.where(observed_TBC, 2 * x_TBC - 1, 0.0)
        else:
            classes_TBCK = nn.functional.one_hot(x_TBC.long(), self.config.categories)
            x_TBX = (classes_TBCK * observed_TBC[..., None]).flatten(-2).to(x_TBC.dtype)
        return nn.functional.dropout(x_TBX, self.config.dropout, self.training)

    @torch.no_grad()
    def log_likelihood(self, batch: dict[str, Tensor], particles: int, method: str = "importance") -> Tensor:
        """An estimate of log p(x) of every series (B,) float64, too low on average (models/state_space/particles.py).

        Draws from torch's default generator. `method` is importance or particle.
        """
        if method == "importance":
            return importance(self, batch, particles)
        return particle_filter(self, batch, particles).log_likelihood_B

    @torch.no_grad()
    def forecast(self, batch: dict[str, Tensor], horizon: int, samples: int, particles: int = 1) -> Tensor:
        """Values of the steps that follow each series (samples, B, horizon, C). The first one follows the last step of
        the series, not of the batch. The filter has `particles` particles for each sample."""
        return forecast(self, batch, horizon, samples, particles)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding and of full activation checkpointing."""
        return [self.posterior, self.transition, self.emission]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups by the width rule."""
        parameters = list(self.parameters())
        matrices = [p for p in parameters if p.ndim == 2]
        vectors = [p for p in parameters if p.ndim == 1]
        rate = hidden_rate(self.config.width)
        return [ParameterGroup("matrices", matrices, rate, 1 / rate), ParameterGroup("vectors", vectors, 1.0, 0.0)]


def transition_of(config: SsmConfig) -> LstmTransition | GatedTransition | LinearTransition | KnownTransition:
    latent, width = config.latents, config.transition_width or config.width
    if (known := config.known) is not None:
        first, deviation = np.sqrt(np.diag(known.initial_covariance)), np.diag(known.transition_noise)
        parts = (known.transition, deviation, first)
        return KnownTransition(*(torch.tensor(part, dtype=torch.float32) for part in parts))
    if config.transition == "linear":
        return LinearTransition(latent)
    return LstmTransition(latent, width) if config.transition == "lstm" else GatedTransition(latent, width)


def emission_of(config: SsmConfig) -> Emission:
    if (known := config.known) is not None:
        parts = (known.emission, np.diag(known.emission_noise))
        return KnownEmission(*(torch.tensor(part, dtype=torch.float32) for part in parts))
    sizes = (config.latents, config.emission_width or config.width, config.emission_depth, config.channels)
    if config.emission == "gaussian":
        return GaussianEmission(*sizes)
    if config.emission == "bernoulli":
        return BernoulliEmission(*sizes)
    return CategoricalEmission(*sizes, config.categories)


HELD = {"lstm": 17.0, "elman": 3.0}
"""Numbers that a recurrence of posterior or transition holds for backward, per unit of state and step, h included:
measured in eager fp32 on a CPU (models/memory/lstm_workspace.py)."""


def ssm_remembers(config: SsmConfig, element: int) -> Remembered:
    width = config.transition_width or config.width
    states = 2 * width if config.transition == "lstm" and config.A is None else 0
    return Remembered("latent and state of a particle", element * (config.latents + states), 0)


def ssm_cost(config: SsmConfig, lengths: Lengths) -> Cost:
    """Parameters, and FLOPs per step of a series. Activations are those of eager fp32 on a CPU."""
    with torch.device("meta"):
        model = StateSpace(config)
    parameters = sum(p.numel() for p in model.parameters())
    forward = model.posterior.flops + model.transition.flops + model.emission.flops
    inside = HELD[config.cell] + (0 if config.posterior == "causal" else 2)
    read = inside * config.width * (2 if config.posterior == "bidirectional" else 1)
    moved = {"lstm": HELD["lstm"], "gated": 2, "linear": 0}[config.transition if config.A is None else "linear"]
    # Rebuilding ends with the last tensor that backward needs, which the result of the emission's last product is not.
    # With a known model only the posterior is trained, and nothing is rebuilt.
    rebuilt = 0
    if config.A is None:
        last = model.emission.layers[-1]
        assert isinstance(last, nn.Linear)
        spared = 0 if config.emission == "gaussian" else 2 * last.in_features * last.out_features
        rebuilt = model.posterior.flops + model.transition.flops + model.emission.flops - spared
    said = config.emission_depth * (config.emission_width or config.width) + 3 * config.inputs
    return Cost(
        family="ssm",
        parameters=parameters,
        parameters_without_embeddings=parameters,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        checkpointing_flops_per_unit=rebuilt,
        activation_elements_per_unit=read
        + moved * (config.transition_width or config.width)
        + said
        + 13 * config.latents,
    )


FAMILY = Family("ssm", SsmConfig, StateSpace, ssm_cost, ssm_remembers)
