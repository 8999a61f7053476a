"""Recurrent language model: an embedding, several layers of LSTM, GRU or Elman cells, and an output layer.

The recurrences. x_t is the output of the layer below at step t, sigma the logistic function, and * is elementwise:

    elman   h_t = phi(W_h h_{t-1} + W_x x_t + b),  phi = tanh or relu (Elman 1990)
    gru     r, u = sigma(W h_{t-1} + W' x_t + b);  n = tanh(W_n x_t + b_n + r * (W_m h_{t-1} + b_m));
            h_t = (1 - u) * n + u * h_{t-1}  (Cho et al. 2014, with r after the product, as in fused kernels)
    lstm    i, f, o = sigma(W h_{t-1} + W' x_t + b);  g = tanh(W_g h_{t-1} + W_g' x_t + b_g);
            c_t = f * c_{t-1} + i * g;  h_t = o * tanh(c_t)  (Hochreiter and Schmidhuber 1997, Gers et al. 2000)

Elman's output y_t = phi(W_y h_t + b_y) is the distribution of the next token for all cells. phi is the softmax, W_y the
output layer (the embedding table if it is tied) and b_y a bias per token. Every other b is the sum of the two bias
vectors of the fused kernels.

Each layer is one call of torch's kernel over all steps. Nothing here loops over time. Inside, time is the first axis
(`x_TBD`), as the kernels require.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.config import DEEPEST, ModelConfig
from reducible.models.contract import Batch, CarriesState, Family
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.layers.activation_checkpointing import CutsTime, chunk_length, over_time
from reducible.models.layers.adapted_weights import adapted_weight
from reducible.models.layers.lstm import LSTM
from reducible.models.layers.width_rule import EMBEDDING_DEVIATION, ParameterGroup, logit_scale, width_groups
from reducible.models.loss import IGNORE, Loss, cross_entropy

KERNELS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": LSTM, "gru": nn.GRU, "elman": nn.RNN}
GATES = {"lstm": 4, "gru": 3, "elman": 1}
FORGET_BIAS = 1.0
"""The first value of the LSTM's forget bias: a new cell keeps its content for some steps (Jozefowicz et al. 2015)."""

LOGIT_GAIN = {"lstm": 7.5, "gru": 7.5, "elman": 3.0}
"""A factor of the logits, besides that of the width rule: h is bounded and small, whereas the last norm of a
transformer scales it to 1.

Measured on bytes of the standard library, at width 64, in 300 to 400 steps of 1,024, with the best of two or three
learning rates: LSTM 2.00 nats at 1, 1.78 at 3, 1.75 at 7.5, 1.79 at 20; GRU 2.01, 1.79, 1.78 at 1, 3, 7.5; Elman 1.98,
2.06 at 3, 7.5.
"""

State = tuple[Tensor, ...]
"""The state of one layer: (h,), or (h, c) of an LSTM, each (1, B, D)."""

REFUSED_DOCUMENTS = "documents: a recurrent model carries its state over their borders and cannot mask them"


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    repeated = "depth"

    vocabulary: int
    width: int = 128
    """Size of the embedding and of every layer's state."""
    depth: int = 2
    cell: str = "lstm"
    nonlinearity: str = "tanh"
    """The function phi of an Elman cell: tanh or relu."""
    tied: bool = True
    """Whether the output layer is the embedding table."""
    dropout: float = 0.0
    """Dropout on the input of each layer and of the output. One mask serves all steps of a sequence."""
    truncation: int | None = None
    """The most steps that gradients reach back; the state is carried on. None: the whole sequence."""

    def __post_init__(self) -> None:
        self.require_whole("depth", most=DEEPEST)
        self.require_whole("vocabulary", "width")
        self.require_whole("truncation", or_none=True)
        self.require_one_of("cell", KERNELS)
        self.require_one_of("nonlinearity", ("tanh", "relu"))
        self.require_flag("tied")
        self.require_number("dropout", least=0, below=1)
        if self.nonlinearity != "tanh" and self.cell != "elman":
            raise ValueError(f"model.nonlinearity: is for elman cells; leave it out with {self.cell}")

    @property
    def piece(self) -> int | None:
        return self.truncation

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    def scaled(self, width: int) -> "RecurrentConfig":
        """The ladder: this config at another width, which sets the depth: 1 layer, 2 from width 24, 3 from 512.

        Measured on bytes (300 steps of 1,024): from about 10,000 parameters on a second layer helps more than width. A
        third layer learns more slowly at first.
        """
        if width < 2:
            raise ValueError(f"model.width: {width!r} must be at least 2")
        return replace(self, width=width, depth=1 if width < 24 else 2 if width < 512 else 3)


class Memory:
    """The state of every layer after the tokens read so far; `logits` updates it."""

    def __init__(self, depth: int) -> None:
        self.states: list[State | None] = [None] * depth


class Recurrent(CutsTime, CarriesState):
    """The width rule (layers/width_rule.py) initialises and scales it; input and state matrices are hidden matrices."""

    config: RecurrentConfig
    compiles = False
    """torch.compile cannot make a graph of a fused recurrence (pytorch #141184)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.logit_scale = LOGIT_GAIN[config.cell] * logit_scale(config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        # Layers are separate modules with dropout between them, because cuDNN's dropout has a random state of its own.
        more = {"nonlinearity": config.nonlinearity} if config.cell == "elman" else {}
        kernel = KERNELS[config.cell]
        self.layers = nn.ModuleList(kernel(config.width, config.width, **more) for _ in range(config.depth))
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.output_bias = nn.Parameter(torch.empty(config.vocabulary))
        self.left: dict[str, list[Tensor]] = {}
        """The state and masks that a piece of a truncated sequence leaves to the next one."""
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator, by the width rule.

        Biases start at 0, except the forget bias of an LSTM.
        """
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=EMBEDDING_DEVIATION)
        nn.init.zeros_(self.output_bias)
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
                else:
                    nn.init.zeros_(parameter)
                if self.config.cell == "lstm" and name == "bias_ih_l0":
                    parameter[self.config.width : 2 * self.config.width] = FORGET_BIAS  # gates are i, f, g, o

    def forward(self, batch: dict[str, Any]) -> Loss:
        """Batch: inputs and targets (B, T) int64, IGNORE where there is no target. Pieces also have `state`."""
        if "documents" in batch:
            raise ValueError(REFUSED_DOCUMENTS)
        inputs_TB, targets_TB = batch["inputs"].T, batch["targets"].T
        left: dict[str, list[Tensor]] = batch.get("state", {})
        states = self._unpacked(left["states"]) if left else [None] * self.config.depth
        masks = left["masks"] if left else self._masks(inputs_TB.shape[1])

        def advance(inputs_TB: Tensor, targets_TB: Tensor, states: list[State | None]) -> tuple[Tensor, list[State]]:
            h_TBD, new = self.advance(inputs_TB, states, masks)
            return cross_entropy(self.predict(h_TBD), targets_TB).nats, new

        nats, new = over_time(advance, (inputs_TB, targets_TB), states, self.rebuilds)
        if self.config.truncation is not None:
            self.left = {"states": [part.detach() for state in new for part in state], "masks": masks}
        return Loss(torch.stack(nats).sum(), (targets_TB != IGNORE).sum(), {})

    def advance(
        self, tokens_TB: Tensor, states: Sequence[State | None], masks: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[State]]:
        """Reads tokens from a state (None: zeros). Returns the top layer's h (T, B, D) and every layer's state."""
        x_TBD = self.embedding(tokens_TB)
        new = []
        for number, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            if masks:
                x_TBD = x_TBD * masks[number]
            # nn.LSTM takes and gives a pair, the others a tensor.
            given = state[0] if state is not None and len(state) == 1 else state
            x_TBD, after = layer(x_TBD, given)
            new.append(after if isinstance(after, tuple) else (after,))
        return (x_TBD * masks[-1] if masks else x_TBD), new

    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None, caches: Memory | None = None) -> Tensor:
        """(B, T, vocabulary): the next token's unnormalised log-probabilities at every position.

        With a memory, reading continues where it stopped, and the memory is updated.
        """
        if documents_BT is not None:
            raise ValueError(REFUSED_DOCUMENTS)
        memory = Memory(self.config.depth) if caches is None else caches
        h_TBD, new = self.advance(tokens_BT.T, memory.states)
        memory.states = list(new)
        return self.predict(h_TBD).transpose(0, 1)

    def caches(self, rows: int, length: int) -> Memory:
        """An empty memory, with which `logits` can read a text in parts; it takes any number of rows and any length."""
        return Memory(self.config.depth)

    def read_on(self, tokens_BT: Tensor, caches: Memory) -> Tensor:
        return self.logits(tokens_BT, caches=caches)

    def pieces(self, batch: Batch) -> Iterator[tuple[dict[str, Any], bool]]:
        """(piece, whether it is the last) of `truncation` steps each, for back-propagation piece by piece.

        A piece starts from the state after the piece before, detached: gradients stop there, and what a piece held for
        backward is freed before the next one runs. All pieces have the same dropout masks.
        """
        length = batch["inputs"].shape[1]
        step = self.config.truncation or length
        for start in range(0, length, step):
            piece: dict[str, Any] = {name: tensor[:, start : start + step] for name, tensor in batch.items()}
            if start:
                piece["state"] = self.left
            yield piece, start + step >= length
        self.left = {}

    def predict(self, h_TBD: Tensor) -> Tensor:
        table = self.embedding.weight if self.output is None else adapted_weight(self.output)
        return F.linear(h_TBD * self.logit_scale, table, self.output_bias)

    def _masks(self, rows: int) -> list[Tensor]:
        """Masks (B, D) for each layer and the output, of 0 and 1 / (1 - dropout) (Gal and Ghahramani 2016).

        One mask serves all steps, so pieces and chunks of a sequence have the masks of the whole sequence.
        """
        if not (self.training and self.config.dropout):
            return []
        ones = self.embedding.weight.new_ones(rows, self.config.width)
        return [F.dropout(ones, self.config.dropout) for _ in range(self.config.depth + 1)]

    def _unpacked(self, tensors: Sequence[Tensor]) -> list[State | None]:
        size = len(tensors) // self.config.depth
        return [tuple(tensors[at : at + size]) for at in range(0, len(tensors), size)]

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers."""
        return self.config.dropout > 0

    def blocks(self) -> list[nn.Module]:
        """The layers: the units of sharding and of full activation checkpointing."""
        return list(self.layers)

    def tied_tables(self) -> Sequence[nn.Module]:
        return [self.embedding] if self.output is None else []

    def parameter_groups(self) -> list[ParameterGroup]:
        tables = [self.embedding.weight] + ([] if self.output is None else [self.output.weight])
        inside = [parameter for layer in self.layers for parameter in layer.parameters()]
        return width_groups(
            self.config.width,
            tables,
            [parameter for parameter in inside if parameter.ndim == 2],
            [parameter for parameter in inside if parameter.ndim == 1] + [self.output_bias],
        )


HELD = {"lstm": 16.3, "gru": 8.0, "elman": 2.0}
"""Numbers that a layer holds for backward, per unit of state and step, h included: measured in eager fp32 on a CPU.
oneDNN's LSTM, with its workspace (models/memory/lstm_workspace.py), a little more for short sequences; torch's own GRU
and RNN. `plan` rehearses a step and needs none of them."""


def recurrent_remembers(config: RecurrentConfig, element: int) -> Remembered:
    states = 2 if config.cell == "lstm" else 1
    return Remembered("state", element * states * config.depth * config.width, 0)


def recurrent_cost(config: RecurrentConfig, lengths: Lengths) -> Cost:
    """Parameters and FLOPs (conventions: models/cost/ledger.py). Activations are those of eager fp32 on a CPU.

    A layer of G gates (4, 3, 1) multiplies its input by G matrices and its state by G matrices. Parameters are exact.
    FLOPs are exact as well, except that torch's loop for GRU and Elman cells skips the gradient of the zeros that a
    sequence starts from, 2 G width^2 per layer and sequence.
    """
    width, depth, vocabulary = config.width, config.depth, config.vocabulary
    matrices = 2 * config.gates * width * width
    tables = vocabulary * width * (1 if config.tied else 2)
    inside = depth * (matrices + 2 * config.gates * width) + vocabulary
    forward = depth * 2 * matrices + 2 * vocabulary * width
    kept = (depth * HELD[config.cell] + 1) * width + vocabulary
    if config.cell == "lstm":  # its kernel holds h besides the scaled and the masked copies of h
        kept += width * (depth if config.dropout else 1)
    # Held for backward at once: a piece of the sequence, or its states and one chunk that is rebuilt.
    piece = min(config.truncation or lengths.target, lengths.target)
    chunk = chunk_length(round(piece))
    state = (2 if config.cell == "lstm" else 1) * depth * width
    return Cost(
        family="recurrent",
        parameters=tables + inside,
        parameters_without_embeddings=inside,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        checkpointing_flops_per_unit=depth * 2 * matrices,
        sqrt_time_flops_per_unit=forward,
        activation_elements_per_unit=kept * piece / lengths.target,
        sqrt_time_elements_per_unit=(state * piece / chunk + kept * chunk) / lengths.target,
    )


FAMILY = Family("recurrent", RecurrentConfig, Recurrent, recurrent_cost, recurrent_remembers)
