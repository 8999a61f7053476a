"""LSTM encoder-decoder with attention: none, multiplicative (Luong et al. 2015) or additive (Bahdanau et al. 2015).

The decoder starts from the encoder's final state. With attention it also reads every source position:
v_t = sum_i alpha_ti f_i with f = T(h^e) and T linear. alpha is a distribution over the source, or one position if hard.

    luong     alpha_t from f_i . W h_t. v_t enters the output only, so the decoder is one fused LSTM over the whole
              target and attention is one batched product. There is no Python loop over time.
    bahdanau  alpha_t from u . tanh(K f_i + W h_{t-1}). v_t is fed into the decoder's cell (input feeding), so the
              steps run in a loop.

The distribution of the next token is softmax(E tanh(C [v_t; h_t])), or softmax(E h_t) without attention.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.config import DEEPEST, ModelConfig
from reducible.models.contract import Family, Part
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.pair_tables import PairTables, require_one_vocabulary
from reducible.models.layers.activation_checkpointing import CutsTime, joined, over_time
from reducible.models.layers.adapted_weights import adapted_matrices
from reducible.models.layers.device_kind import device_kind
from reducible.models.layers.lstm import LSTM
from reducible.models.layers.output_loss import output_loss
from reducible.models.layers.padded_lstm import PaddedLSTM
from reducible.models.layers.width_rule import EMBEDDING_DEVIATION, logit_scale
from reducible.models.loss import IGNORE, Loss

ATTENTIONS = ("none", "luong", "bahdanau")


@dataclass(frozen=True)
class Seq2SeqConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    repeated = "depth"
    looks_back = True

    source_vocabulary: int
    vocabulary: int
    shared: bool = False
    """Whether both sides have one tokenizer, and therefore one embedding table."""
    width: int = 128
    """Size of embeddings, decoder states and attention; also of encoder states, both directions together."""
    depth: int = 1
    """Layers of the encoder and of the decoder."""
    attention: str = "luong"
    hard: bool = False
    """Attend to the source position of the largest score only; trained with the straight-through estimator."""
    bidirectional: bool = True
    """Whether the encoder reads in both directions, each with half the width."""
    tied: bool = True
    """Whether the output layer is the decoder's embedding table."""
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self.require_whole("depth", most=DEEPEST)
        self.require_whole("source_vocabulary", "vocabulary", "width")
        self.require_flag("shared", "hard", "bidirectional", "tied")
        self.require_one_of("attention", ATTENTIONS)
        self.require_number("dropout", "label_smoothing", least=0, below=1)
        if self.hard and self.attention == "none":
            raise ValueError("model.hard: needs attention; set model.attention to luong or bahdanau")
        if self.bidirectional and self.width % 2:
            raise ValueError(f"model.width: {self.width} must be even, or model.bidirectional false")
        require_one_vocabulary(self)

    def scaled(self, width: int) -> "Seq2SeqConfig":
        """The ladder: this config at another width, which sets the depth: 1 layer, 2 from width 256, 3 from 512."""
        if width < 2 or width % 2:
            raise ValueError(f"model.width: {width!r} must be even and at least 2")
        return replace(self, width=width, depth=max(1, width.bit_length() - 7))


class Memory(NamedTuple):
    """What attention reads of each source. It is empty (S = 0) without attention."""

    f_BSD: Tensor
    keys_BSD: Tensor
    """What queries are compared with: f itself (luong) or K f (bahdanau)."""
    mask_BS: Tensor
    """True at real source positions."""


class State(NamedTuple):
    """The state of decoding. Rows R are sentences or hypotheses."""

    hidden_LRD: Tensor
    cell_LRD: Tensor
    memory: Memory


class Decoded(NamedTuple):
    h_BTD: Tensor
    attended_BTD: Tensor | None
    alpha_BTS: Tensor | None
    state: State


class Encoder(nn.Module):
    """An LSTM over each source, and what attention reads of it: f = T(h) of the top layer, and keys."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        width = config.width
        hidden = width // (2 if config.bidirectional else 1)
        self.recurrence = PaddedLSTM(width, hidden, config.depth, config.dropout, config.bidirectional)
        self.transform = nn.Linear(width, width, bias=False) if config.attention != "none" else None
        self.key = nn.Linear(width, width, bias=False) if config.attention == "bahdanau" else None

    def forward(self, x_BSD: Tensor, lengths_B: Tensor) -> State:
        h_BSD, hidden_LBD, cell_LBD = self.recurrence(x_BSD, lengths_B)
        f_BSD = h_BSD[:, :0] if self.transform is None else self.transform(h_BSD)
        keys_BSD = f_BSD if self.key is None else self.key(f_BSD)
        mask_BS = torch.arange(f_BSD.shape[1], device=lengths_B.device) < lengths_B[:, None]
        return State(hidden_LBD, cell_LBD, Memory(f_BSD, keys_BSD, mask_BS))


class FusedDecoder(nn.Module):
    """LSTM layers over all targets at once, and then attention for all of them at once."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.hard, self.dropout = config.hard, config.dropout
        self.layers = nn.ModuleList(LSTM(config.width, config.width, batch_first=True) for _ in range(config.depth))
        self.query = nn.Linear(config.width, config.width, bias=False) if config.attention == "luong" else None

    def forward(self, x_BTD: Tensor, state: State) -> Decoded:
        h_BTD, finals = x_BTD, []
        for number, layer in enumerate(self.layers):
            if self.dropout and number:
                h_BTD = F.dropout(h_BTD, self.dropout, self.training)
            h_BTD, final = layer(h_BTD, (state.hidden_LRD[number : number + 1], state.cell_LRD[number : number + 1]))
            finals.append(final)
        hidden, cell = (torch.cat(parts) for parts in zip(*finals, strict=True))
        state = State(hidden, cell, state.memory)
        if self.query is None:
            return Decoded(h_BTD, None, None, state)
        memory = state.memory
        scores_BTS = torch.bmm(self.query(h_BTD), memory.keys_BSD.transpose(1, 2))
        alpha_BTS = attention(scores_BTS, memory.mask_BS[:, None], self.hard)
        return Decoded(h_BTD, torch.bmm(alpha_BTS, memory.f_BSD), alpha_BTS, state)


class FeedingDecoder(CutsTime, nn.Module):
    """Attends before each step with the state of the step before, and feeds the result into the LSTM's cell."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        width = config.width
        self.hard, self.dropout = config.hard, config.dropout
        # Columns of the first layer's gates: token, attended, hidden state; of the others': layer below, hidden state.
        self.gates = nn.ModuleList(
            nn.Linear((3 if layer == 0 else 2) * width, 4 * width) for layer in range(config.depth)
        )
        self.query = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x_BTD: Tensor, state: State) -> Decoded:
        with adapted_matrices(self.gates) as weights:
            return self.steps(x_BTD, state, weights)

    def steps(self, x_BTD: Tensor, state: State, weights: list[Tensor]) -> Decoded:
        memory, width = state.memory, x_BTD.shape[-1]
        biases: list[Tensor] = [gates.bias for gates in self.gates]  # type: ignore[misc]
        # The tokens' part of the gates does not depend on the state: it is one product for all steps.
        tokens_BTG = F.linear(x_BTD, weights[0][:, :width], biases[0])
        weights = [weights[0][:, width:], *weights[1:]]

        def advance(tokens_BTG: Tensor, states: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Any]:
            hidden, cells = list(states[0]), list(states[1])
            steps = []
            # unbind and not [:, t]: the backward of each such select would write a whole tensor of zeros.
            for tokens_BG in tokens_BTG.unbind(1):
                attended_BD, alpha_BS = self.look(memory, self.query(hidden[-1]))
                x_BD = attended_BD
                for layer, weight in enumerate(weights):
                    start = tokens_BG if layer == 0 else biases[layer]
                    gates_BG = torch.addmm(start, torch.cat([x_BD, hidden[layer]], dim=1), weight.t())
                    hidden[layer], cells[layer] = lstm_cell(gates_BG, cells[layer])
                    x_BD = hidden[layer]
                    if self.dropout and layer + 1 < len(weights):
                        x_BD = F.dropout(x_BD, self.dropout, self.training)
                steps.append((hidden[-1], attended_BD, alpha_BS))
            return [torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)], (hidden, cells)

        first = (state.hidden_LRD.unbind(), state.cell_LRD.unbind())
        chunks, (hidden, cells) = over_time(advance, (tokens_BTG,), first, self.rebuilds, axis=1, draws=True)
        h_BTD, attended_BTD, alpha_BTS = (joined(parts, axis=1) for parts in zip(*chunks, strict=True))
        return Decoded(h_BTD, attended_BTD, alpha_BTS, State(torch.stack(hidden), torch.stack(cells), memory))

    def look(self, memory: Memory, query_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The attended v (B, D) and alpha (B, S). Backward needs (B, S, D) numbers of it, by far the most of a step."""
        energy_BSD = torch.tanh(memory.keys_BSD + query_BD[:, None])
        alpha_BS = attention(self.score(energy_BSD).squeeze(-1), memory.mask_BS, self.hard)
        return torch.bmm(alpha_BS[:, None], memory.f_BSD).squeeze(1), alpha_BS


def lstm_cell(gates_BG: Tensor, cell_BD: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden and cell state, from the gates before their activation, in torch's order: in, forget, cell, out."""
    in_, forget, new, out = gates_BG.chunk(4, dim=-1)
    cell_BD = torch.sigmoid(forget) * cell_BD + torch.sigmoid(in_) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell_BD), cell_BD


def attention(scores: Tensor, mask: Tensor, hard: bool) -> Tensor:
    """alpha over the last axis; it is 0 where the mask is False.

    If hard, alpha is 1 at the largest score. Its own gradient is 0, so the softmax's gradient takes its place
    (straight-through, Bengio et al. 2013).
    """
    alpha = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    if not hard:
        return alpha
    one_hot = torch.zeros_like(alpha).scatter_(-1, alpha.argmax(-1, keepdim=True), 1.0)
    # x - x is exactly 0, so the result is exactly one-hot.
    return one_hot + (alpha - alpha.detach()) if alpha.requires_grad else one_hot


class Seq2Seq(PairTables):
    """Initialised and scaled by layers/width_rule.py; forget gates start at bias 1 (Gers et al. 2000)."""

    config: Seq2SeqConfig
    compiles = False
    """torch.compile cannot take a recurrence."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.source_embedding = None if config.shared else nn.Embedding(config.source_vocabulary, config.width)
        self.encoder = Encoder(config)
        self.decoder = FeedingDecoder(config) if config.attention == "bahdanau" else FusedDecoder(config)
        self.combine = nn.Linear(2 * config.width, config.width, bias=False) if config.attention != "none" else None
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator, by the width rule."""
        for table in self.tables():
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
                if "bias_ih" in name or "gates" in name:
                    # Gates stand in torch's order: in, forget, cell, out.
                    nn.init.ones_(parameter.view(4, -1)[1])
            elif not name.startswith(("embedding", "source_embedding", "output")):
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """Batch: source (B, S), source_lengths (B,), inputs and targets (B, T) int64, IGNORE where there is no target.

        In training the nats include label smoothing, and the part `cross_entropy` is the plain nats.
        """
        decoded = self.decode(batch)
        targets_BT = batch["targets"]
        h, attended = decoded.h_BTD, decoded.attended_BTD
        if device_kind(h) == "cpu":
            # Only real targets: the output layer is most of the work, and half of the rest comes just before it.
            real_BT = targets_BT != IGNORE
            targets_BT, h = targets_BT[real_BT], h[real_BT]
            attended = None if attended is None else attended[real_BT]
        smoothing = self.config.label_smoothing if self.training else 0.0
        return output_loss(self.readout(h, attended), self.output_table(), targets_BT, smoothing)

    def decode(self, batch: dict[str, Tensor]) -> Decoded:
        """The decoder's states under teacher forcing."""
        return self.decoder(self.dropped(self.embedding(batch["inputs"])), self.start(batch))

    def readout(self, h: Tensor, attended: Tensor | None) -> Tensor:
        """(..., width): what the output table turns into logits."""
        if self.combine is not None:
            assert attended is not None
            h = torch.tanh(self.combine(torch.cat([attended, h], dim=-1)))
        return self.dropped(h) * logit_scale(self.config.width)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, vocabulary): the next token's unnormalised log-probabilities after each of `inputs`."""
        decoded = self.decode(batch)
        return F.linear(self.readout(decoded.h_BTD, decoded.attended_BTD), self.output_table())

    def attention_map(self, batch: dict[str, Tensor]) -> Tensor | None:
        """alpha (B, T, S) under teacher forcing; row t is the attention for target t. None without attention."""
        return self.decode(batch).alpha_BTS

    # Decoding (models/generate/beam_search.py) ------------------------------------------------------------------------

    def start(self, batch: dict[str, Tensor]) -> State:
        """Reads the sources."""
        return self.encoder(self.dropped(self.source_table()(batch["source"])), batch["source_lengths"])

    def next(self, tokens_R: Tensor, state: State) -> tuple[Tensor, State]:
        """The logits (R, vocabulary) after one more token in each row."""
        decoded = self.decoder(self.dropped(self.embedding(tokens_R[:, None])), state)
        x_RTD = self.readout(decoded.h_BTD, decoded.attended_BTD)
        return F.linear(x_RTD[:, 0], self.output_table()), decoded.state

    def select(self, state: State, rows_R: Tensor) -> State:
        hidden, cell, memory = state
        return State(hidden[:, rows_R], cell[:, rows_R], Memory(*(part[rows_R] for part in memory)))

    # What the train step asks for ---------------------------------------------------------------------------------

    def blocks(self) -> list[nn.Module]:
        """The units of sharding and of full activation checkpointing."""
        return [self.encoder, self.decoder]

    def selective_parts(self) -> list[Part]:
        """The parts that selective activation checkpointing rebuilds: each attention step, if it feeds the cell."""
        return [(self.decoder, "look")] if isinstance(self.decoder, FeedingDecoder) else []

    def tables(self) -> Sequence[nn.Embedding | nn.Linear]:
        return [part for part in (self.embedding, self.source_embedding, self.output) if part is not None]


HELD = 16.5
"""Numbers that an LSTM of encoder or decoder holds for backward, per unit of state and step, without h: measured in
eager fp32 with oneDNN's kernel (models/memory/lstm_workspace.py); 20 % more at widths of 16."""


def seq2seq_remembers(config: Seq2SeqConfig, element: int) -> Remembered:
    looked_at = {"none": 0, "luong": 1, "bahdanau": 2}[config.attention] * config.width
    return Remembered(
        "state, and the source if attended", element * 2 * config.depth * config.width, element * looked_at
    )


def seq2seq_cost(config: Seq2SeqConfig, lengths: Lengths) -> Cost:
    """Exact parameters and FLOPs (conventions: models/cost/ledger.py).

    Activations are those of eager fp32 on a CPU, within 15 %. Sources of different lengths take less: packed sequences
    run in another kernel, which holds half as much.
    """
    width, depth = config.width, config.depth
    square = width * width
    attends, feeds = config.attention != "none", config.attention == "bahdanau"
    directions = 2 if config.bidirectional else 1
    hidden = width // directions
    recurrent = directions * depth * 4 * hidden * (width + hidden)
    """The size of the encoder's LSTM matrices; each layer reads `width` numbers."""
    looked_at = (square if attends else 0) + (square if feeds else 0)
    """T, and K."""
    cells = depth * 8 * square + (4 * square if feeds else 0)
    query = square if attends else 0
    combine = 2 * square if attends else 0
    biases = directions * depth * 8 * hidden + depth * (4 if feeds else 8) * width
    inside = recurrent + looked_at + cells + query + combine + (width if feeds else 0) + biases
    tables = config.vocabulary * (1 if config.tied else 2) + (0 if config.shared else config.source_vocabulary)

    sources, pairs = lengths.source_per_unit, lengths.cross_span
    # For each pair of a source and a target position: its score and its term of the sum.
    looks = 4 * width * pairs if attends else 0
    forward = 2 * (sources * (recurrent + looked_at) + cells + query + combine + config.vocabulary * width) + looks
    # Rebuilding a block ends with the last tensor that backward needs: the inputs of the last product, not its result.
    rebuilt = 2 * (sources * (recurrent + (square if feeds else 0)) + cells + query)
    rebuilt += looks if feeds else looks / 2

    dropped = width if config.dropout else 0
    between = (depth - 1) * dropped
    encoder = sources * (depth * (HELD + 1) * width + (width if attends else 0) + between)
    if feeds:
        decoder = depth * 8 * width + 2 * width + 2 * between + pairs * (width + 1.25)
    else:
        decoder = depth * (HELD + 1) * width + 2 * between + (width + pairs if attends else 0)
    if config.hard:
        decoder += pairs
    outside = (3 * width if attends else 0) + dropped + width + (2 * width if config.label_smoothing else 0)
    inputs = sources * (width + dropped) + width + dropped
    return Cost(
        family="seq2seq",
        parameters=inside + tables * width,
        parameters_without_embeddings=inside,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        checkpointing_flops_per_unit=rebuilt,
        activation_elements_per_unit=inputs + encoder + decoder + outside,
        checkpointed_elements_per_unit=inputs
        + sources * (2 * width if attends else 0)
        + outside
        + max(encoder, decoder),
    )


FAMILY = Family("seq2seq", Seq2SeqConfig, Seq2Seq, seq2seq_cost, seq2seq_remembers)
