"""Sequence variational auto-encoder: an LSTM encoder, one Gaussian latent vector per sentence, an LSTM decoder.

Bowman et al. 2016, "Generating sentences from a continuous space". The encoder reads the sentence, its end included.
Its last state, or the largest value of each unit over time, gives mu and log sigma of q(z|x). The decoder is a language
model that reads z beside the embedding at every step. Its first states are made from z: c = W z, h = tanh(c), as in the
code of He et al. 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.config import DEEPEST, ModelConfig
from reducible.models.contract import Family, SentenceModel
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.layers.adapted_weights import adapted_weight
from reducible.models.layers.gaussian import Gaussian
from reducible.models.layers.latent_estimators import mutual_information
from reducible.models.layers.lstm import LSTM
from reducible.models.layers.width_rule import EMBEDDING_DEVIATION, ParameterGroup, logit_scale, width_groups
from reducible.models.loss import IGNORE, Loss

State = tuple[Tensor, Tensor]
"""h and c of an LSTM layer, each (1, B, width)."""


@dataclass(frozen=True)
class VaeConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed.

    The keys from `word_dropout` on affect training only. Validation and evaluation always use the plain ELBO.
    """

    repeated = "depth"

    vocabulary: int
    width: int = 128
    latent: int = 16
    """Dimensions of z."""
    depth: int = 1
    """Layers of the encoder, and of the decoder."""
    pooling: str = "max"
    """How q(z|x) is made from the encoder's states: last, or max, the largest of each unit (Long et al. 2020)."""
    tied: bool = True
    """Whether the output layer is the embedding table."""
    dropout: float = 0.0
    """Dropout in the decoder on embeddings, between layers and before the output. One mask serves all steps."""
    word_dropout: float = 0.0
    """Share of the words that the decoder reads as the separator, so that it must use z (Bowman et al. 2016)."""
    samples: int = 1
    """Latents drawn for each sentence; their ELBOs are averaged."""
    kl_schedule: str = "linear"
    """How the weight of KL rises from kl_from to kl_weight: linear, cyclical, or none (it is kl_weight throughout)."""
    kl_weight: float = 1.0
    kl_from: float = 0.0
    kl_rise: float = 0.5
    """Share of the run (linear) or of each cycle (cyclical) in which the weight rises. Then it stays constant."""
    kl_cycles: int = 4
    free_bits: float = 0.0
    """Nats of KL per dimension of z and sentence that cost nothing (Kingma et al. 2016)."""
    aggressive: int = 0
    """Encoder steps before each decoder step in the aggressive phase (He et al. 2019). 0: there is no such phase."""

    def __post_init__(self) -> None:
        self.require_whole("depth", most=DEEPEST)
        self.require_whole("vocabulary", "width", "latent", "kl_cycles")
        self.require_whole("samples", most=1024)
        self.require_whole("aggressive", least=0)
        self.require_one_of("pooling", ("last", "max"))
        self.require_one_of("kl_schedule", ("none", "linear", "cyclical"))
        self.require_number("dropout", "word_dropout", least=0, below=1)
        self.require_number("kl_weight", "kl_from", "free_bits", least=0)
        self.require_number("kl_rise", above=0, most=1)

    def scaled(self, width: int) -> "VaeConfig":
        """The ladder: this config at another width. The width sets the depth and the size of z (32 at width 1024)."""
        if width < 2:
            raise ValueError(f"model.width: {width!r} must be at least 2")
        return replace(self, width=width, latent=max(2, round(math.sqrt(width))), depth=1 if width < 512 else 2)

    def kl_weight_at(self, step: int, stop: int) -> float:
        """The weight of KL at a step of a run of `stop` steps (cyclical: Fu et al. 2019, equation 6)."""
        if self.kl_schedule == "none":
            return self.kl_weight
        cycles = self.kl_cycles if self.kl_schedule == "cyclical" else 1
        place = step * cycles / stop % 1 if step < stop else 1.0
        return self.kl_from + (self.kl_weight - self.kl_from) * min(1.0, place / self.kl_rise)


class Encoder(nn.Module):
    """LSTM layers that read from left to right, and a linear map from their pooled states."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.layers = nn.ModuleList(LSTM(config.width, config.width, batch_first=True) for _ in range(config.depth))
        self.head = nn.Linear(config.width, 2 * config.latent)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Gaussian:
        """q(z|x). Padding after a sentence's last token changes nothing, because the LSTM reads from the left."""
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD)
        last_B1 = (lengths_B[:, None] - 1).clamp(min=0)
        if self.pooling == "last":
            x_BD = x_BTD.take_along_dim(last_B1[..., None], dim=1)[:, 0]
        else:
            padding_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) > last_B1
            x_BD = x_BTD.masked_fill(padding_BT[..., None], -torch.inf).amax(1)
        return Gaussian(*self.head(x_BD).float().chunk(2, dim=-1))


class Decoder(nn.Module):
    """LSTM layers over embeddings and z. Their first states are made from z as well."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.layers = nn.ModuleList(
            LSTM(config.width + (0 if layer else config.latent), config.width, batch_first=True)
            for layer in range(config.depth)
        )
        self.start = nn.Linear(config.latent, config.depth * config.width)

    def states(self, z_BZ: Tensor) -> list[State]:
        """The state of each layer before the first step."""
        cells = self.start(z_BZ).chunk(len(self.layers), dim=-1)
        return [(torch.tanh(cell_BD)[None], cell_BD[None].contiguous()) for cell_BD in cells]

    def forward(self, x_BTD: Tensor, z_BZ: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """The outputs (B, T, width), and the states after the last step."""
        # Under autocast and sharding in bf16 the embeddings, the states and z can differ in dtype.
        z_BTZ = z_BZ.to(x_BTD.dtype)[:, None].expand(-1, x_BTD.shape[1], -1)
        after = []
        for number, (layer, (h, c)) in enumerate(zip(self.layers, states, strict=True)):
            x_BTD = self._drop(x_BTD)
            x = x_BTD if number else torch.cat((x_BTD, z_BTZ), dim=-1)
            x_BTD, state = layer(x, (h.to(x.dtype), c.to(x.dtype)))
            after.append(state)
        return self._drop(x_BTD), after

    def _drop(self, x_BTD: Tensor) -> Tensor:
        """One mask for all steps of a sentence (Gal and Ghahramani 2016), as in models/families/recurrent.py."""
        if not (self.training and self.dropout):
            return x_BTD
        return x_BTD * F.dropout(torch.ones_like(x_BTD[:, :1]), self.dropout)


class Writing(NamedTuple):
    """The state of writing one sentence for each latent."""

    z_BZ: Tensor
    states: list[State]


class Vae(SentenceModel):
    """p(x) = integral of p(x|z) N(z; 0, I), trained by the ELBO. Encoder and decoder share one embedding table."""

    config: VaeConfig
    compiles = False  # torch.compile makes no graph of nn.LSTM, and may draw a sample anew in backward

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.logit_scale = logit_scale(config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.output_bias = nn.Parameter(torch.empty(config.vocabulary))
        self.kl_weight = config.kl_weight
        self.schedule = Aggressive(config.aggressive) if config.aggressive else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator, by the width rule.

        Biases start at 0, except those of the forget gates, which start at 1: a cell that keeps its content from the
        beginning learns long spans sooner (Jozefowicz et al. 2015).
        """
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=EMBEDDING_DEVIATION)
        nn.init.zeros_(self.output_bias)
        for name, parameter in [*self.encoder.named_parameters(), *self.decoder.named_parameters()]:
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            else:
                nn.init.zeros_(parameter)
                if "bias_ih" in name:
                    parameter[self.config.width : 2 * self.config.width] = 1.0  # gates: input, forget, cell, output

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """Batch: inputs and targets (B, T) int64, one sentence per row; after its targets a row holds IGNORE.

        The nats are -ELBO. In training KL is weighted and has free bits. The part `kl_weight` is the weight times the
        units, so that its mean is the weight. In evaluation `mutual_information` is the lower estimate within this
        batch (models/layers/latent_estimators.py), which cannot exceed the logarithm of the number of rows.
        """
        targets_BT = batch["targets"]
        q = self.posterior(batch)
        z_KBZ = q.sample(self.config.samples)
        reconstruction = -self.log_likelihood(batch, z_KBZ).mean(0).sum()
        units_B = (targets_BT != IGNORE).sum(1)
        units = units_B.sum()
        present_B1 = (units_B > 0)[:, None]  # a row without targets is not a sentence and adds no KL
        kl_BZ = q.divergence() * present_B1
        kl = kl_BZ.sum()
        parts = {"reconstruction": reconstruction, "kl": kl}
        if not self.training:
            information_B = mutual_information(Gaussian(*(x[present_B1[:, 0]] for x in q)), z_KBZ[0, present_B1[:, 0]])
            parts["mutual_information"] = information_B.lower_N.sum().float()
            return Loss(reconstruction + kl, units, parts)
        if self.config.free_bits:
            kl = (kl_BZ.clamp(min=self.config.free_bits) * present_B1).sum()
        parts["kl_weight"] = self.kl_weight * units.float()
        if self.schedule is not None:
            parts["aggressive"] = self.schedule.running * units.float()
        return Loss(reconstruction + self.kl_weight * kl, units, parts)

    def posterior(self, batch: dict[str, Tensor]) -> Gaussian:
        """q(z|x) of each row, in fp32."""
        targets_BT = batch["targets"]
        counted_BT = targets_BT != IGNORE
        return self.encoder(self.embedding(targets_BT.where(counted_BT, 0)), counted_BT.sum(1))

    def log_likelihood(self, batch: dict[str, Tensor], z_KBZ: Tensor) -> Tensor:
        """log p(x|z) in nats (K, B), for each of K latents of each row, in fp32."""
        samples, rows, _ = z_KBZ.shape
        inputs_NT = batch["inputs"].repeat(samples, 1)
        targets_NT = batch["targets"].repeat(samples, 1)
        if self.training and self.config.word_dropout:
            # A dropped word is replaced by the separator, which begins every sentence and is never dropped itself.
            dropped_NT = torch.rand(inputs_NT.shape, device=inputs_NT.device) < self.config.word_dropout
            inputs_NT = torch.where(dropped_NT, inputs_NT[:, :1], inputs_NT)
        z_NZ = z_KBZ.flatten(0, 1)
        logits_NTV, _ = self.logits(inputs_NT, z_NZ, self.decoder.states(z_NZ))
        nats_NT = F.cross_entropy(
            logits_NTV.float().flatten(0, 1), targets_NT.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return -nats_NT.view(samples, rows, -1).sum(-1)

    def logits(self, tokens_BT: Tensor, z_BZ: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Unnormalised log-probabilities of the next token (B, T, vocabulary), and the states after the last token."""
        x_BTD, states = self.decoder(self.embedding(tokens_BT), z_BZ, states)
        table_VD = self.embedding.weight if self.output is None else adapted_weight(self.output)
        return F.linear(x_BTD * self.logit_scale, table_VD, self.output_bias), states

    @property
    def latents(self) -> int:
        return self.config.latent

    def start(self, z_BZ: Tensor) -> Writing:
        return Writing(z_BZ, self.decoder.states(z_BZ))

    def next(self, tokens_B: Tensor, state: Writing) -> tuple[Tensor, Writing]:
        logits_B1V, states = self.logits(tokens_B[:, None], state.z_BZ, state.states)
        return logits_B1V[:, 0], Writing(state.z_BZ, states)

    @property
    def stochastic(self) -> bool:
        """True, because every forward pass draws the latent, also in evaluation."""
        return True

    def at_step(self, step: int, stop: int) -> frozenset[str]:
        """Sets the weight of KL. Returns the parameter groups that this step does not update (aggressive phase)."""
        self.kl_weight = self.config.kl_weight_at(step, stop)
        return frozenset() if self.schedule is None else self.schedule.at_step(step)

    def at_validation(self, means: dict[str, float]) -> None:
        """The aggressive phase ends when mutual information on the validation sentences has stopped rising."""
        if self.schedule is not None:
            self.schedule.at_validation(means["mutual_information"])

    def blocks(self) -> list[nn.Module]:
        """The repeated parts: the units of sharding and of full activation checkpointing."""
        return [*self.encoder.layers, *self.decoder.layers]

    def tied_tables(self) -> Sequence[nn.Module]:
        return [self.embedding] if self.output is None else []

    def adapter_group(self, matrix: str) -> str:
        return f"{ENCODER if matrix.startswith('encoder.') else DECODER} matrices"

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups by the width rule, apart for encoder and decoder; p(x|z) needs the table, so it is the decoder's."""
        tables = [self.embedding.weight] + ([] if self.output is None else [self.output.weight])
        decoder = [*self.decoder.parameters(), self.output_bias]
        return self._groups(ENCODER, list(self.encoder.parameters()), []) + self._groups(DECODER, decoder, tables)

    def _groups(self, owner: str, parameters: list[nn.Parameter], tables: list[Tensor]) -> list[ParameterGroup]:
        groups = width_groups(
            self.config.width,
            tables,
            [parameter for parameter in parameters if parameter.ndim == 2],
            [parameter for parameter in parameters if parameter.ndim == 1],
        )
        return [group._replace(name=f"{owner} {group.name}") for group in groups]


ENCODER, DECODER = "encoder", "decoder"
KINDS = ("embeddings", "matrices", "vectors")


PATIENCE = 3
"""Validations without a new highest mutual information after which the aggressive phase is over."""


class Aggressive(nn.Module):
    """The schedule of He et al. 2019, "Lagging inference networks and posterior collapse".

    In the aggressive phase the encoder takes `inner` steps, each on other sentences, and then the decoder takes one.
    The paper's inner loop runs until the ELBO stops rising, which depends on more than the step's number. The phase
    ends at the PATIENCE-th validation in a row whose mutual information is not a new highest. (The paper measures once
    an epoch and ends the phase at the first decrease. With more frequent measurements the noise at the beginning, when
    z has no meaning yet, would end it at once.) The state of the schedule is a buffer, so checkpoints hold it.
    """

    memory: Tensor

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("memory", torch.tensor([-math.inf, 0.0], dtype=torch.float64))
        """The highest mutual information of a validation, and the number of validations since. At PATIENCE the phase
        is over."""
        self.running = True
        self._next: int | None = None

    def at_step(self, step: int) -> frozenset[str]:
        if step != self._next:  # the first step, or the first after a checkpoint was read
            self.running = self.memory[1].item() < PATIENCE
        self._next = step + 1
        if not self.running:
            return frozenset()
        left_alone = DECODER if (step + 1) % (self.inner + 1) else ENCODER
        return frozenset(f"{left_alone} {kind}" for kind in KINDS)

    def at_validation(self, information: float) -> None:
        highest, since = self.memory.tolist()
        if since < PATIENCE:
            since = 0 if information > highest else since + 1
            self.memory.copy_(torch.tensor([max(highest, information), since], dtype=torch.float64))
        self.running = since < PATIENCE


HELD = 19.0
"""Numbers that an LSTM layer of encoder or decoder holds for backward, per unit of state and step, h included: measured
in eager fp32 with oneDNN's kernel (models/memory/lstm_workspace.py)."""


def vae_remembers(config: VaeConfig, element: int) -> Remembered:
    return Remembered("state and latent", element * (2 * config.depth * config.width + config.latent), 0)


def vae_cost(config: VaeConfig, lengths: Lengths) -> Cost:
    """Exact parameters and FLOPs of one encoder and `samples` decoders (conventions: models/cost/ledger.py).

    Activations are those of eager fp32 on a CPU, within a few per cent.
    """
    width, latent, depth, vocabulary, samples = (
        *(config.width, config.latent, config.depth, config.vocabulary, config.samples),
    )
    layer = 4 * width * 2 * width
    encoder_step, decoder_step = depth * layer, depth * layer + 4 * width * latent
    head, start = 2 * width * latent, latent * depth * width
    per_sentence = 2 * (head + samples * start) / lengths.target
    forward = 2 * encoder_step + samples * 2 * (decoder_step + width * vocabulary) + per_sentence
    biases = 2 * depth * 2 * 4 * width + 2 * latent + depth * width + vocabulary
    inside = encoder_step + decoder_step + head + start + biases

    drop = (depth + 1) * width if config.dropout else 0
    layers = (1 + samples) * depth
    outside = width + samples * (3 * width + latent + vocabulary + drop)
    return Cost(
        family="vae",
        parameters=inside + vocabulary * width * (1 if config.tied else 2),
        parameters_without_embeddings=inside,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        checkpointing_flops_per_unit=2 * (encoder_step + samples * decoder_step),
        activation_elements_per_unit=layers * HELD * width + outside,
        checkpointed_elements_per_unit=(layers + samples * HELD) * width + outside,
    )


FAMILY = Family("vae", VaeConfig, Vae, vae_cost, vae_remembers)
