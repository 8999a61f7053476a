"""Decoder-only transformer: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU or GELU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.config import DEEPEST, AttentionShape, ModelConfig
from reducible.models.contract import Family, Part, TextModel
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.layers.attention import document_mask
from reducible.models.layers.rotary import Rotary, rotate
from reducible.models.layers.width_rule import EMBEDDING_DEVIATION, ParameterGroup, logit_scale, width_groups
from reducible.models.loss import Loss, cross_entropy


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The keys of a recipe's `model`. Raises ValueError naming a key whose value is not allowed."""

    repeated = "depth"

    vocabulary: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    key_value_heads: int | None = None
    """None: as many as heads. Fewer: grouped-query attention."""
    feed_forward: int | None = None
    """Inner size of the feed-forward layer. None: 8/3 width for swiglu (a multiple of 8), 4 width for gelu."""
    activation: str = "swiglu"
    tied: bool = True
    """Whether the output layer is the embedding table."""
    dropout: float = 0.0
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        self.require_whole("depth", most=DEEPEST)
        self.require_whole("vocabulary", "width", "heads")
        self.require_whole("key_value_heads", "feed_forward", or_none=True)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.heads: width {self.width} cannot be divided into {self.heads} heads of an even size"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"model.key_value_heads: {self.key_value_heads} must divide model.heads ({self.heads})")
        self.require_one_of("activation", ("swiglu", "gelu"))
        self.require_number("dropout", least=0, below=1)
        self.require_number("rope_theta", "norm_epsilon", above=0)

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def hidden(self) -> int:
        """Inner size of the feed-forward layer."""
        if self.feed_forward is not None:
            return self.feed_forward
        return 4 * self.width if self.activation == "gelu" else 8 * math.ceil(self.width / 3)

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(self.heads, self.kv_heads)

    def scaled(self, width: int) -> "TransformerConfig":
        """The ladder: this config at another width, which sets depth, heads and feed-forward size.

        Depth grows with the square root of the width and is that of GPT-2 small at (768, 12). Heads have size 32, or
        64 from width 256 on. Heads of size 8 take three times as long on a CPU. A constant size lets the learning rate
        stay constant too.
        """
        if width < 4 or width % 2:
            raise ValueError(f"model.width: {width!r} must be even and at least 4")
        heads = max(1, round(width / (64 if width >= 256 else 32)))
        while width % (2 * heads):
            heads -= 1
        groups = self.heads // self.kv_heads
        return replace(
            self,
            width=width,
            depth=max(2, round(0.43 * math.sqrt(width))),
            heads=heads,
            key_value_heads=None if self.key_value_heads is None else heads // math.gcd(heads, groups),
            feed_forward=None,
        )


class Cache(Protocol):
    """Keys and values of the tokens that one layer has read."""

    @property
    def length(self) -> int: ...

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values; returns those of all tokens read so far, the new ones last."""
        ...


class KeyValueCache:
    """A Cache that allocates `length` positions at once."""

    def __init__(self, rows: int, length: int, config: TransformerConfig, weight: Tensor) -> None:
        shape = (rows, config.kv_heads, length, config.head_size)
        self.keys_BHSK, self.values_BHSK = weight.new_empty(shape), weight.new_empty(shape)
        self.length = 0

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + k_BHTK.shape[2]
        self.keys_BHSK[:, :, start : self.length] = k_BHTK
        self.values_BHSK[:, :, start : self.length] = v_BHTK
        return self.keys_BHSK[:, :, : self.length], self.values_BHSK[:, :, : self.length]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023); q, k and v are one matrix product."""

    def __init__(self, config: TransformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.head_size
        self.rotary = rotary
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`mask` is added to the scores and includes causality. Without a mask attention is causal."""
        B, T, _ = x_BTD.shape
        start = 0 if cache is None else cache.length
        table_TC = self.rotary.table(start + T, x_BTD.device)[start:]
        qkv_BTHK = self.qkv(x_BTD).view(B, T, -1, self.head_size)
        qk_BTHK, v_BTHK = qkv_BTHK.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        q_BTHK, k_BTHK = rotate(qk_BTHK, table_TC).split((self.heads, self.kv_heads), dim=2)
        q_BHTK, k_BHSK, v_BHSK = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        if cache is not None:
            assert start == 0 or T == 1, "after the prompt a cache takes one token at a time"
            k_BHSK, v_BHSK = cache.extend(k_BHSK, v_BHSK)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """down(silu(gate x) * up x), SwiGLU (Shazeer 2020), or down(gelu(up x)); gate and up are one matrix product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.up = nn.Linear(config.width, config.hidden * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.up(x_BTD)
        if self.gated:
            gate, up = up.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(up))


class Block(nn.Module):
    """Pre-norm: the input of each layer is normalised, and its output is added to the residual stream."""

    def __init__(self, config: TransformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config, rotary)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), mask, cache))
        return x_BTD + self._drop(self.feed_forward(self.feed_forward_norm(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(TextModel):
    """Llama's shape (Touvron et al. 2023), initialised and scaled by the width rule (models/layers/width_rule.py)."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.logit_scale = logit_scale(config.width)
        rotary = Rotary(config.head_size, config.rope_theta)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, rotary) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every parameter anew from torch's global generator, by the width rule."""
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=EMBEDDING_DEVIATION)
        for block in self.blocks():
            for name, weight in block.named_parameters():
                if weight.ndim == 1:
                    nn.init.ones_(weight)
                    continue
                # What writes to the residual stream starts smaller, so that the stream does not grow with depth.
                writes = name.endswith(("out.weight", "down.weight"))
                shrink = math.sqrt(2 * self.config.depth) if writes else 1.0
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]) / shrink)
        nn.init.ones_(self.norm.weight)

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """Batch: inputs and targets (B, T) int64, IGNORE where there is no target; optional documents (B, T)."""
        return cross_entropy(self.logits(batch["inputs"], batch.get("documents")), batch["targets"])

    def logits(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        caches: Sequence[KeyValueCache | None] | None = None,
    ) -> Tensor:
        """(B, T, vocabulary): the next token's unnormalised log-probabilities at every position.

        With document numbers attention stays inside each document. Rotary scores depend only on the distance of two
        positions, so positions need not restart in each document.
        """
        x_BTD = self.embedding(tokens_BT)
        mask = None if documents_BT is None else score_mask(documents_BT, x_BTD.dtype)
        if self.config.dropout:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        for block, cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            x_BTD = block(x_BTD, mask, cache)
        # The width rule's factor goes into the gain: one vector instead of every activation.
        x_BTD = F.rms_norm(x_BTD, self.norm.normalized_shape, self.norm.weight * self.logit_scale, self.norm.eps)
        return F.linear(x_BTD, self.embedding.weight) if self.output is None else self.output(x_BTD)

    def read_on(self, tokens_BT: Tensor, caches: list[KeyValueCache]) -> Tensor:
        return self.logits(tokens_BT, caches=caches)

    def caches(self, rows: int, length: int) -> list[KeyValueCache]:
        """Empty caches, one for each layer, with which `logits` can read `length` tokens in parts."""
        return [KeyValueCache(rows, length, self.config, self.embedding.weight) for _ in self.layers]

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers."""
        return self.config.dropout > 0

    def blocks(self) -> list[nn.Module]:
        """The repeated parts: the units of sharding and of activation checkpointing."""
        return list(self.layers)

    def selective_parts(self) -> list[Part]:
        """What selective activation checkpointing rebuilds (models/layers/activation_checkpointing.py)."""
        return [(block, "forward") for block in self.blocks()]

    def tied_tables(self) -> Sequence[nn.Module]:
        return [self.embedding] if self.output is None else []

    def parameter_groups(self) -> list[ParameterGroup]:
        tables = [self.embedding.weight] + ([] if self.output is None else [self.output.weight])
        inside = [parameter for block in self.blocks() for parameter in block.parameters()]
        return width_groups(
            self.config.width,
            tables,
            [parameter for parameter in inside if parameter.ndim == 2],
            [parameter for parameter in inside if parameter.ndim == 1] + [self.norm.weight],
        )


def score_mask(documents_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """The document mask as numbers to add to the scores. Each layer would convert a boolean mask again."""
    allowed = document_mask(documents_BT)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)


def transformer_remembers(config: TransformerConfig, element: int) -> Remembered:
    return Remembered("key-value cache", 0, element * 2 * config.depth * config.kv_heads * config.head_size)


def transformer_cost(config: TransformerConfig, lengths: Lengths) -> Cost:
    """Exact parameters and FLOPs (models/cost/ledger.py). Activations are those of eager fp32 on a CPU."""
    width, hidden, depth, vocabulary = config.width, config.hidden, config.depth, config.vocabulary
    qkv = (config.heads + 2 * config.kv_heads) * config.head_size
    gated = config.activation == "swiglu"
    block = width * qkv + width * width + (3 if gated else 2) * width * hidden
    gains = (2 * depth + 1) * width
    # Scores and weighted sum: for each query and head two products of K and T numbers, together 4 T width FLOPs.
    square = 2 * lengths.target_span * width
    forward = depth * (2 * block + 2 * square) + 2 * vocabulary * width

    # Rebuilding a block ends with the last tensor that backward needs: without dropout that is the input of `down`.
    rebuilt = 2 * block + 2 * square - (0 if config.dropout else 2 * width * hidden)

    norm = 3 * width + 1
    drop = width if config.dropout else 0
    turned = (config.heads + config.kv_heads) * config.head_size
    inside = 2 * norm + turned + qkv + config.heads + width + (4 if gated else 2) * hidden + 2 * drop
    outside = drop + norm + vocabulary
    return Cost(
        family="transformer",
        parameters=depth * block + gains + vocabulary * width * (1 if config.tied else 2),
        parameters_without_embeddings=depth * block + gains,
        forward_flops_per_unit=forward,
        training_flops_per_unit=3 * forward,
        attention_recompute_flops_per_unit=depth * square,
        checkpointing_flops_per_unit=depth * rebuilt,
        activation_elements_per_unit=depth * inside + outside,
        checkpointed_elements_per_unit=depth * width + inside + outside,
    )


FAMILY = Family(
    "transformer", TransformerConfig, Transformer, transformer_cost, transformer_remembers, masks_documents=True
)
