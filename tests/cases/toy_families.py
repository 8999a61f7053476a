"""Families from outside the package, one for each kind of batch, with as little in them as the contract allows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reducible.models.config import ModelConfig
from reducible.models.contract import Family, PairModel, SentenceModel, SeriesModel, TextModel
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.layers.latent_estimators import Gaussian
from reducible.models.loss import Loss


@dataclass(frozen=True)
class TextConfig(ModelConfig):
    vocabulary: int
    width: int = 8


@dataclass(frozen=True)
class PairConfig(ModelConfig):
    source_vocabulary: int
    vocabulary: int
    shared: bool = False
    width: int = 8


@dataclass(frozen=True)
class SeriesConfig(ModelConfig):
    channels: int
    width: int = 8


class ToyText(TextModel):
    """The mean of what was read says what comes next. Its tables are tied as is usual elsewhere: one parameter."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.vocabulary)
        self.output.weight = self.embedding.weight

    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.embedding(tokens_BT).cumsum(1)
        count_T1 = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]
        return self.output(torch.tanh(self.hidden(x_BTD / count_T1)))


class ToyPairs(PairModel):
    """The sum of the source and the last token say what comes next."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        self.source = nn.Embedding(config.source_vocabulary, config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.vocabulary)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        places_S = torch.arange(batch["source"].shape[1], device=batch["source"].device)
        real_BS1 = (places_S < batch["source_lengths"][:, None])[..., None]
        read_B1D = (self.source(batch["source"]) * real_BS1).sum(1, keepdim=True)
        return self.output(torch.tanh(self.hidden(read_B1D + self.embedding(batch["inputs"]))))


class ToySentences(SentenceModel):
    """The latent and the last token say what comes next."""

    latents = 2

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.Linear(config.width, 4)
        self.decoder = nn.Linear(2, config.width)
        self.output = nn.Linear(config.width, config.vocabulary)

    def posterior(self, batch: dict[str, Tensor]) -> Gaussian:
        real_BT = batch["targets"] >= 0
        x_BD = (self.embedding(batch["targets"].clamp(min=0)) * real_BT[..., None]).sum(1)
        return Gaussian(*self.encoder(x_BD).float().chunk(2, dim=-1))

    def start(self, z_BZ: Tensor) -> Tensor:
        return self.decoder(z_BZ)

    def next(self, tokens_B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(torch.tanh(state + self.embedding(tokens_B))), state


class ToySeries(SeriesModel):
    """The value before says what comes next, give or take a deviation; before the first value stands 0."""

    exact = True

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(config.channels, config.width)
        self.output = nn.Linear(config.width, config.channels)
        self.log_deviation = nn.Parameter(torch.zeros(config.channels))

    def following(self, x_C: Tensor) -> torch.distributions.Normal:
        mean_C: Tensor = self.output(torch.tanh(self.hidden(x_C)))
        return torch.distributions.Normal(mean_C, self.log_deviation.exp().expand_as(mean_C))

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        before_BTC = torch.where(batch["observed"], batch["values"], 0.0).roll(1, dims=1)
        before_BTC[:, 0] = 0.0
        nats_BTC = -self.following(before_BTC).log_prob(batch["values"])
        return Loss(torch.where(batch["observed"], nats_BTC, 0.0).sum(), batch["steps"].sum(), {})

    def forecast(self, batch: dict[str, Tensor], horizon: int, samples: int, particles: int = 1) -> Tensor:
        last_B = batch["steps"].sum(1) - 1
        last_BC = torch.where(batch["observed"], batch["values"], 0.0)[torch.arange(len(last_B)), last_B]
        x_SBC, written = last_BC.expand(samples, *last_BC.shape), []
        for _ in range(horizon):
            x_SBC = self.following(x_SBC).sample()
            written.append(x_SBC)
        return torch.stack(written, dim=2)


def cost_of(build: type) -> Callable[[ModelConfig, Lengths], Cost]:
    def cost(config: ModelConfig, lengths: Lengths) -> Cost:
        with torch.device("meta"):
            model = build(config)
        count = sum(parameter.numel() for parameter in model.parameters())
        return Cost(
            family="toy",
            parameters=count,
            parameters_without_embeddings=count,
            forward_flops_per_unit=2.0 * count,
            training_flops_per_unit=6.0 * count,
            checkpointing_flops_per_unit=0.0,
            activation_elements_per_unit=4.0 * config.width,
        )

    return cost


TEXT = Family("toy", TextConfig, ToyText, cost_of(ToyText))
SENTENCES = Family("toy", TextConfig, ToySentences, cost_of(ToySentences))
PAIRS = Family("toy", PairConfig, ToyPairs, cost_of(ToyPairs))
SERIES = Family("toy", SeriesConfig, ToySeries, cost_of(ToySeries))
