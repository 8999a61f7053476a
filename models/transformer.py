"""Decoder-only transformer: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU or GELU."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cost import Cost
from models.loss import Loss, cross_entropy
from models.width import EMBEDDING_DEVIATION, ParameterGroup, logit_scale, width_groups


@dataclass(frozen=True)
class TransformerConfig:
    vocabulary: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    key_value_heads: int | None = None
    """None: as many as heads. Fewer: grouped-query attention."""
    feed_forward: int | None = None
    """Hidden size of the feed-forward layer. None: 8/3 width for swiglu (rounded up to 8), 4 width for gelu."""
    activation: str = "swiglu"
    tied: bool = True
    """Whether the output layer is the embedding table."""
    dropout: float = 0.0
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "depth", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"model.{name}: {value!r} must be a whole number of at least 1")
        for name in ("key_value_heads", "feed_forward"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"model.{name}: {value!r} must be a whole number of at least 1, or left out")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.heads: {self.heads} heads do not cut width {self.width} into heads of an even size"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.key_value_heads: {self.key_value_heads} must divide model.heads ({self.heads})"
            )
        if self.activation not in ("swiglu", "gelu"):
            raise ValueError(f"model.activation: {self.activation!r} must be swiglu or gelu")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout: {self.dropout!r} must be at least 0 and below 1")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def hidden(self) -> int:
        """Size of the feed-forward layer's inside."""
        if self.feed_forward is not None:
            return self.feed_forward
        return 4 * self.width if self.activation == "gelu" else 8 * math.ceil(self.width / 3)

    def scaled(self, width: int) -> "TransformerConfig":
        """The ladder: this config at another width; depth, heads and feed-forward size follow."""
        depth = max(2, round(0.43 * math.sqrt(width)))
        heads = max(1, round(width / 32))
        while width % (2 * heads):
            heads -= 1
            if heads == 0:
                raise ValueError(f"model.width: {width} must be even")
        groups = self.heads // self.kv_heads
        key_value = None if self.key_value_heads is None else heads // math.gcd(heads, groups)
        return replace(
            self, width=width, depth=depth, heads=heads, key_value_heads=key_value, feed_forward=None
        )


class Rotary:
    """Tables of cos and sin by position, made when first needed; no module, so that nothing casts them."""

    def __init__(self, head_size: int, theta: float) -> None:
        self.head_size = head_size
        self.theta = theta
        self.table_TC = torch.empty(0, 0)

    def table(self, length: int, device: torch.device) -> Tensor:
        """Complex (length, head_size / 2): exp(i position frequency)."""
        if self.table_TC.shape[0] < length or self.table_TC.device != device:
            with torch.inference_mode(False), torch.no_grad():
                exponent = (
                    torch.arange(0, self.head_size, 2, device=device, dtype=torch.float64) / self.head_size
                )
                angle = torch.outer(
                    torch.arange(length, device=device, dtype=torch.float64), self.theta**-exponent
                )
                self.table_TC = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        return self.table_TC[:length]


def rotate(x_BTHK: Tensor, table_TC: Tensor) -> Tensor:
    """Turn neighbouring pairs of every head by the angle of their position (Su et al. 2021, interleaved)."""
    pairs = torch.view_as_complex(x_BTHK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table_TC[:, None]).flatten(-2).to(x_BTHK.dtype)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.head_size
        self.rotary = rotary
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv_BTHK = self.qkv(x_BTD).view(B, T, -1, self.head_size)
        turned, v_BTHK = qkv_BTHK.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        turned = rotate(turned, self.rotary.table(T, x_BTD.device))
        q_BTHK, k_BTHK = turned.split((self.heads, self.kv_heads), dim=2)
        y_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTHK.transpose(1, 2),
            v_BTHK.transpose(1, 2),
            attn_mask=mask_BTT,
            is_causal=mask_BTT is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
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
    def __init__(self, config: TransformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config, rotary)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, mask_BTT: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), mask_BTT))
        return x_BTD + self._drop(self.feed_forward(self.feed_forward_norm(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        rotary = Rotary(config.head_size, config.rope_theta)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, rotary) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.output = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's global generator, as the width rule says."""
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=EMBEDDING_DEVIATION)
        for block in self.blocks():
            for name, weight in block.named_parameters():
                if weight.ndim == 1:
                    nn.init.ones_(weight)
                    continue
                # Layers that write to the residual stream start smaller, so that its size does not grow with depth.
                writes = name.endswith(("out.weight", "down.weight"))
                shrink = math.sqrt(2 * self.config.depth) if writes else 1.0
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]) / shrink)
        nn.init.ones_(self.norm.weight)

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """Batch: inputs and targets (B, T) int64, targets IGNORE where there is none; documents (B, T) to mask by."""
        return cross_entropy(self.logits(batch["inputs"], batch.get("documents")), batch["targets"])

    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """(B, T, vocabulary): the next token's unnormalised log-probabilities at every position."""
        mask = None if documents_BT is None else document_mask(documents_BT)
        x_BTD = self.embedding(tokens_BT)
        if self.config.dropout:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        for block in self.layers:
            x_BTD = block(x_BTD, mask)
        x_BTD = self.norm(x_BTD) * logit_scale(self.config.width)
        return F.linear(x_BTD, self.embedding.weight) if self.output is None else self.output(x_BTD)

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers."""
        return self.config.dropout > 0

    def blocks(self) -> list[nn.Module]:
        """The repeated parts: the units of sharding and of activation checkpointing."""
        return list(self.layers)

    def parameter_groups(self) -> list[ParameterGroup]:
        tables = [self.embedding.weight] + ([] if self.output is None else [self.output.weight])
        inside = [parameter for block in self.blocks() for parameter in block.parameters()]
        return width_groups(
            self.config.width,
            tables,
            [parameter for parameter in inside if parameter.ndim == 2],
            [parameter for parameter in inside if parameter.ndim == 1] + [self.norm.weight],
        )


def document_mask(documents_BT: Tensor) -> Tensor:
    """Bool (B, 1, T, T): position t may look at s <= t of its own document.

    Rotary scores depend on t - s only, so positions need not start anew in each document.
    """
    length = documents_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return ((documents_BT[:, :, None] == documents_BT[:, None, :]) & causal)[:, None]


def transformer_cost(config: TransformerConfig, sequence: int) -> Cost:
    """Exact parameters and model FLOPs; attention over the full square, as torch's counter has it."""
    width, head, vocabulary = config.width, config.head_size, config.vocabulary
    qkv = width * (config.heads + 2 * config.kv_heads) * head
    feed_forward = (3 if config.activation == "swiglu" else 2) * width * config.hidden
    matrices = config.depth * (qkv + width * width + feed_forward)
    gains = (2 * config.depth + 1) * width
    tables = vocabulary * width * (1 if config.tied else 2)
    # Scores and weighted sum: two products of (T, head) with (T, head) a head, for T tokens: 4 T width a token.
    forward = 2 * (matrices + vocabulary * width) + config.depth * 4 * sequence * width
    return Cost(matrices + gains + tables, matrices + gains, forward, 3 * forward)


def batch_to(batch: dict[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """Arrays or tensors -> tensors on the device."""
    return {name: torch.as_tensor(value).to(device, non_blocking=True) for name, value in batch.items()}
