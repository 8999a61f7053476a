"""Encoder-decoder transformer: the decoder also attends to what the encoder made of the source (Vaswani et al. 2017).

The layers are those of models/families/transformer.py: pre-norm, RMSNorm, rotary positions in self-attention, SwiGLU or
GELU. Cross-attention has no positions: its keys carry what the encoder wrote there, and distances between a position in
one language and a position in another mean little.

Axes: B sentences, R rows of a search, S source tokens, T target tokens, D width, H heads, K size of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.config import AttentionShape, ModelConfig
from reducible.models.contract import Family, Part
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.pair_tables import PairTables, require_one_vocabulary
from reducible.models.families.transformer import Attention, Block, FeedForward, TransformerConfig
from reducible.models.layers.attention import padding_mask
from reducible.models.layers.output_loss import output_loss
from reducible.models.layers.rotary import Rotary
from reducible.models.layers.width_rule import EMBEDDING_DEVIATION, logit_scale
from reducible.models.loss import Loss


@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    repeated = "depth"

    source_vocabulary: int
    vocabulary: int
    shared: bool
    """Whether both sides have one tokenizer, and therefore one embedding table."""
    width: int = 128
    depth: int = 3
    """Layers of the encoder, and of the decoder."""
    heads: int = 4
    feed_forward: int | None = None
    """Inner size of the feed-forward layer. None: 8/3 width for swiglu (a multiple of 8), 4 width for gelu."""
    activation: str = "swiglu"
    tied: bool = True
    """Whether the output layer is the target's embedding table."""
    dropout: float = 0.1
    label_smoothing: float = 0.0
    """Share of the target's probability spread over the vocabulary, in training only (Szegedy et al. 2016)."""
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        self.require_whole("source_vocabulary")
        self.require_flag("shared")
        self.require_number("label_smoothing", least=0, below=1)
        _ = self.stack  # checks the other keys
        require_one_vocabulary(self)

    @property
    def stack(self) -> TransformerConfig:
        """The configuration that the layers of both sides are made from."""
        return TransformerConfig(
            vocabulary=self.vocabulary,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            feed_forward=self.feed_forward,
            activation=self.activation,
            tied=self.tied,
            dropout=self.dropout,
            rope_theta=self.rope_theta,
            norm_epsilon=self.norm_epsilon,
        )

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(self.heads, self.heads)

    def scaled(self, width: int) -> "EncoderDecoderConfig":
        """The ladder: this config at another width, which sets depth, heads and feed-forward size.

        Heads as in TransformerConfig.scaled; depth grows with the square root and meets the paper's base model at
        (512, 6).
        """
        stack = self.stack.scaled(width)
        return replace(
            self, width=width, depth=max(1, round(0.265 * math.sqrt(width))), heads=stack.heads, feed_forward=None
        )


class GrowingCache:
    """The cache of one layer's self-attention in a search. It grows with every step, and rows can be selected."""

    def __init__(self, keys_RHTK: Tensor | None = None, values_RHTK: Tensor | None = None) -> None:
        self.keys_RHTK, self.values_RHTK = keys_RHTK, values_RHTK

    @property
    def length(self) -> int:
        return 0 if self.keys_RHTK is None else self.keys_RHTK.shape[2]

    def extend(self, k_RHTK: Tensor, v_RHTK: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys_RHTK is not None and self.values_RHTK is not None:
            k_RHTK = torch.cat([self.keys_RHTK, k_RHTK], dim=2)
            v_RHTK = torch.cat([self.values_RHTK, v_RHTK], dim=2)
        self.keys_RHTK, self.values_RHTK = k_RHTK, v_RHTK
        return k_RHTK, v_RHTK

    def rows(self, rows_R: Tensor) -> "GrowingCache":
        if self.keys_RHTK is None or self.values_RHTK is None:
            return GrowingCache()
        return GrowingCache(self.keys_RHTK[rows_R], self.values_RHTK[rows_R])


@dataclass(frozen=True)
class Source:
    """The keys and values that the decoder's layers attend to, computed once for a search."""

    keys_values: Sequence[tuple[Tensor, Tensor]]
    """By layer, each (R, H, S, K)."""
    mask_R11S: Tensor
    """Added to the scores: -inf where the source is padding."""

    def rows(self, rows_R: Tensor) -> "Source":
        pairs = [(k_RHSK[rows_R], v_RHSK[rows_R]) for k_RHSK, v_RHSK in self.keys_values]
        return Source(pairs, self.mask_R11S[rows_R])


@dataclass(frozen=True)
class DecodingState:
    """The state of a search (models/generate/beam_search.py)."""

    source: Source
    sentences: list[int]
    """The sentence of each row. While it does not change, the source need not be gathered again."""
    caches: list[GrowingCache]


class CrossAttention(nn.Module):
    """Queries from the decoder, keys and values from the encoder's output; no positions, no causality."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, key_value: tuple[Tensor, Tensor], mask_B11S: Tensor) -> Tensor:
        k_BHSK, v_BHSK = key_value
        y_BHTK = F.scaled_dot_product_attention(self.queries(x_BTD), k_BHSK, v_BHSK, attn_mask=mask_B11S)
        return self.out(y_BHTK.transpose(1, 2).flatten(-2))

    def queries(self, x_BTD: Tensor) -> Tensor:
        """(B, H, T, K)."""
        return self.query(x_BTD).unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)

    def keys_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Each (B, H, S, K)."""
        key_value_BSHK = self.key_value(memory_BSD).unflatten(-1, (2 * self.heads, self.head_size))
        k_BHSK, v_BHSK = key_value_BSHK.transpose(1, 2).chunk(2, dim=1)
        return k_BHSK, v_BHSK

    def weights(self, x_BTD: Tensor, key_value: tuple[Tensor, Tensor], mask_B11S: Tensor) -> Tensor:
        """The share of its attention that each target token gives to each source token (B, H, T, S)."""
        scores_BHTS = self.queries(x_BTD) @ key_value[0].transpose(-2, -1) / math.sqrt(self.head_size)
        return torch.softmax(scores_BHTS + mask_B11S, dim=-1)


class DecoderBlock(nn.Module):
    """Self-attention over the written tokens, cross-attention to the source, feed-forward; pre-norm, as in Block."""

    def __init__(self, config: TransformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config, rotary)
        self.cross_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.cross = CrossAttention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        mask_B11S: Tensor,
        cache: GrowingCache | None = None,
    ) -> Tensor:
        """`memory`: the encoder's output (B, S, D), or the keys and values that `cross` made of it before."""
        key_value = self.cross.keys_values(memory) if isinstance(memory, Tensor) else memory
        x_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), None, cache))
        x_BTD = x_BTD + self._drop(self.cross(self.cross_norm(x_BTD), key_value, mask_B11S))
        return x_BTD + self._drop(self.feed_forward(self.feed_forward_norm(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class EncoderDecoder(PairTables):
    """Reads a source and writes a target: by teacher forcing in training, by models/generate/beam_search.py later."""

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.logit_scale = logit_scale(config.width)
        stack = config.stack
        rotary = Rotary(stack.head_size, config.rope_theta)
        self.source_embedding = None if config.shared else nn.Embedding(config.source_vocabulary, config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.ModuleList(Block(stack, rotary) for _ in range(config.depth))
        self.encoder_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.decoder = nn.ModuleList(DecoderBlock(stack, rotary) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator, by the width rule."""
        for table in self.tables():
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
        for side, writers in ((self.encoder, 2), (self.decoder, 3)):
            for name, weight in side.named_parameters():
                if weight.ndim == 1:
                    nn.init.ones_(weight)
                    continue
                # What writes to the residual stream starts smaller, so that the stream does not grow with depth.
                writes = name.endswith(("out.weight", "down.weight"))
                shrink = math.sqrt(writers * self.config.depth) if writes else 1.0
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]) / shrink)
        nn.init.ones_(self.encoder_norm.weight)
        nn.init.ones_(self.norm.weight)

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """Batch: source (B, S), source_lengths (B,), inputs and targets (B, T) int64, IGNORE where there is no target.

        Sources end with the separator and are padded behind their length; padding changes no number.
        """
        memory_BSD, mask_B11S = self.encode(batch["source"], batch["source_lengths"])
        x_BTD = self.decode(batch["inputs"], [memory_BSD] * len(self.decoder), mask_B11S)
        smoothing = self.config.label_smoothing if self.training else 0.0
        return output_loss(x_BTD, self.output_table(), batch["targets"], smoothing)

    def encode(self, source_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output (B, S, D), and the mask of the decoder's scores (B, 1, 1, S): -inf after each source."""
        x_BSD = self.dropped(self.source_table()(source_BS))
        real_B1S = padding_mask(lengths_B, source_BS.shape[1])
        mask_B11S = torch.zeros_like(real_B1S, dtype=x_BSD.dtype).masked_fill_(~real_B1S, -torch.inf)[:, None]
        for block in self.encoder:
            x_BSD = block(x_BSD, mask_B11S)
        return self.encoder_norm(x_BSD), mask_B11S

    def decode(
        self,
        tokens_BT: Tensor,
        memories: Sequence[Tensor | tuple[Tensor, Tensor]],
        mask_B11S: Tensor,
        caches: Sequence[GrowingCache | None] | None = None,
    ) -> Tensor:
        """The input of the output table (B, T, D). `memories` has one for each layer, as DecoderBlock takes it."""
        x_BTD = self.dropped(self.embedding(tokens_BT))
        caches = caches or [None] * len(self.decoder)
        for block, memory, cache in zip(self.decoder, memories, caches, strict=True):
            x_BTD = block(x_BTD, memory, mask_B11S, cache)
        # The width rule's factor goes into the gain: one vector instead of every activation.
        return F.rms_norm(x_BTD, self.norm.normalized_shape, self.norm.weight * self.logit_scale, self.norm.eps)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, vocabulary): the next token's unnormalised log-probabilities after each of `inputs`."""
        memory_BSD, mask_B11S = self.encode(batch["source"], batch["source_lengths"])
        return F.linear(self.decode(batch["inputs"], [memory_BSD] * len(self.decoder), mask_B11S), self.output_table())

    # Searching (models/generate/beam_search.py: Decoder) --------------------------------------------------------------

    def start(self, batch: dict[str, Tensor]) -> DecodingState:
        """Reads the sources. The state has one row for each sentence, and nothing is written yet."""
        memory_BSD, mask_B11S = self.encode(batch["source"], batch["source_lengths"])
        key_value = [block.cross.keys_values(memory_BSD) for block in self.decoder]  # type: ignore[union-attr, operator]
        return DecodingState(
            Source(key_value, mask_B11S), list(range(len(memory_BSD))), [GrowingCache() for _ in self.decoder]
        )

    def next(self, tokens_R: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """Logits (R, vocabulary) after these tokens."""
        source = state.source
        x_R1D = self.decode(tokens_R[:, None], source.keys_values, source.mask_R11S, state.caches)
        return F.linear(x_R1D[:, 0], self.output_table()), state

    def select(self, state: DecodingState, rows_R: Tensor) -> DecodingState:
        """Some of the rows, in that order."""
        sentences = [state.sentences[row] for row in rows_R.tolist()]
        source = state.source if sentences == state.sentences else state.source.rows(rows_R)
        return DecodingState(source, sentences, [cache.rows(rows_R) for cache in state.caches])

    @torch.no_grad()
    def attention_map(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, S): how each target position attends to the source, mean over layers and heads; each row sums to 1."""
        maps_BTS: list[Tensor] = []

        def keep(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
            maps_BTS.append(layer.weights(*given).mean(1))  # type: ignore[operator]

        hooks = [block.cross.register_forward_hook(keep) for block in self.decoder]  # type: ignore[union-attr]
        try:
            memory_BSD, mask_B11S = self.encode(batch["source"], batch["source_lengths"])
            self.decode(batch["inputs"], [memory_BSD] * len(self.decoder), mask_B11S)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(maps_BTS).mean(0)

    # What training asks of a family -------------------------------------------------------------------------------

    def tables(self) -> Sequence[nn.Embedding | nn.Linear]:
        return [table for table in (self.source_embedding, self.embedding, self.output) if table is not None]

    def blocks(self) -> list[nn.Module]:
        """The repeated parts: the units of sharding and of activation checkpointing."""
        return [*self.encoder, *self.decoder]

    def selective_parts(self) -> list[Part]:
        """What selective activation checkpointing rebuilds (models/layers/activation_checkpointing.py)."""
        return [(block, "forward") for block in self.blocks()]


def encoder_decoder_remembers(config: EncoderDecoderConfig, element: int) -> Remembered:
    """Keys and values of the targets so far, and of the source, in every layer of the decoder."""
    return Remembered("key-value cache, sources as long as targets", 0, element * 2 * 2 * config.depth * config.width)


def encoder_decoder_cost(config: EncoderDecoderConfig, lengths: Lengths) -> Cost:
    """Exact parameters and FLOPs per target unit (models/cost/ledger.py); activations as eager fp32 on a CPU.

    The encoder's layers, and the keys and values of cross-attention, are counted once per source token, which is
    `source_per_unit` times per target unit.
    """
    stack = config.stack
    width, hidden, depth, vocabulary = config.width, stack.hidden, config.depth, config.vocabulary
    gated = config.activation == "swiglu"
    per_unit = lengths.source_per_unit
    feed_forward = (3 if gated else 2) * width * hidden
    source_block = 4 * width * width + feed_forward
    target_block = 6 * width * width + feed_forward
    key_value = 2 * width * width
    gains = (2 + 3) * depth * width + 2 * width
    without_embeddings = depth * (source_block + target_block + key_value) + gains
    tables = (0 if config.shared else config.source_vocabulary) + vocabulary * (1 if config.tied else 2)

    products = 2 * (per_unit * (source_block + key_value) + target_block)
    # Scores and weighted sum: for each query and head two products of K and T numbers, together 4 T width FLOPs.
    square = 2 * (lengths.source_span + lengths.target_span + lengths.cross_span) * width
    forward = depth * (products + 2 * square) + 2 * vocabulary * width

    # Rebuilding a block ends with the last tensor that backward needs: without dropout that is the input of `down`.
    spared = 0 if config.dropout else 2 * width * hidden * (1 + per_unit)

    norm = 3 * width + 1
    drop = width if config.dropout else 0
    self_attention = norm + 2 * width + 3 * width + stack.heads + width + drop
    cross_attention = norm + width + stack.heads + width + drop
    inside_feed_forward = norm + (4 if gated else 2) * hidden + drop
    source_inside = self_attention + inside_feed_forward
    target_inside = self_attention + cross_attention + inside_feed_forward + per_unit * 2 * width
    outside = (1 + per_unit) * (drop + norm) + vocabulary
    return Cost(
        family="encoder-decoder",
        parameters=without_embeddings + tables * width,
        parameters_without_embeddings=without_embeddings,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        attention_recompute_flops_per_unit=depth * square,
        checkpointing_flops_per_unit=depth * (products + 2 * square - spared),
        activation_elements_per_unit=depth * (per_unit * source_inside + target_inside) + outside,
        checkpointed_elements_per_unit=depth * width * (1 + per_unit)
        + max(per_unit * source_inside, target_inside)
        + outside,
    )


FAMILY = Family(
    "encoder-decoder", EncoderDecoderConfig, EncoderDecoder, encoder_decoder_cost, encoder_decoder_remembers
)
