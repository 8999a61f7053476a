"""Llama weights for the transformer, from llama2.c's .bin and from tensors under Hugging Face's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.layers.width_rule import logit_scale


def load_llama2c(path: Path) -> Transformer:
    """A model from llama2.c's first format: 7 int32 (dim, hidden, layers, heads, kv heads, vocabulary, context), fp32.

    A negative vocabulary means that the output layer is separate. Rotary pairs are neighbours, as in this package.
    """
    raw = path.read_bytes()
    header = np.frombuffer(raw[:28], "<i4")
    config = llama2c_config(header)
    width, hidden, depth, heads, kv_heads, vocabulary, context = header.tolist()
    numbers = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy())
    at = 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(numbers):
            raise ValueError(f"{path}: ends before the weights that its header announces")
        at += count
        return numbers[at - count : at].view(shape)

    key = width // heads * kv_heads
    parts = {
        "embedding": take(abs(vocabulary), width),
        "attention_norm": take(depth, width),
        "q": take(depth, width, width),
        "k": take(depth, key, width),
        "v": take(depth, key, width),
        "out": take(depth, width, width),
        "feed_forward_norm": take(depth, width),
        "gate": take(depth, hidden, width),
        "down": take(depth, width, hidden),
        "up": take(depth, hidden, width),
        "norm": take(width),
    }
    take(2, context, width // heads // 2)  # tables of cos and sin, which the model computes itself
    if not config.tied:
        parts["output"] = take(abs(vocabulary), width)
    if at != len(numbers):
        raise ValueError(f"{path}: {len(numbers) - at} numbers are left after the weights that its header announces")
    layers = [{name: parts[name][i] for name in LAYER_PARTS} for i in range(depth)]
    return _assemble(config, parts["embedding"], layers, parts["norm"], parts.get("output"))


def llama2c_config(header: np.ndarray) -> TransformerConfig:
    """The configuration from the 7 int32 that such a file begins with. Raises ValueError if they cannot be these."""
    if len(header) != 7 or min(header[:5]) < 1 or header[5] == 0 or header[6] < 1:
        raise ValueError("does not begin with the 7 whole numbers of a llama2.c checkpoint")
    width, hidden, depth, heads, kv_heads, vocabulary, _ = header.tolist()
    return TransformerConfig(
        vocabulary=abs(vocabulary),
        width=width,
        depth=depth,
        heads=heads,
        key_value_heads=kv_heads,
        feed_forward=hidden,
        tied=vocabulary > 0,
    )


def load_hugging_face(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Transformer:
    """A model from config.json of a LlamaForCausalLM and its tensors by Hugging Face's names."""
    config = hugging_face_config(settings)

    def neighbours(weight: Tensor, heads: int) -> Tensor:
        """Reorders the rows: Hugging Face rotates number i of a head with number i + K/2, this package neighbours."""
        return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    layers = []
    for i in range(config.depth):
        layer = {ours: state[f"model.layers.{i}.{theirs}.weight"] for ours, theirs in LAYER_PARTS.items()}
        layer["q"] = neighbours(layer["q"], config.heads)
        layer["k"] = neighbours(layer["k"], config.kv_heads)
        layers.append(layer)
    output = None if config.tied else state["lm_head.weight"]
    return _assemble(config, state["model.embed_tokens.weight"], layers, state["model.norm.weight"], output)


LAYER_PARTS = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""The names of a layer's parts: here, and at Hugging Face."""


def hugging_face_config(settings: Mapping[str, Any]) -> TransformerConfig:
    """The configuration. Raises ValueError for what is not supported, such as scaled rotary positions and biases."""
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"rope_scaling: {rope} is not supported; only plain rotary positions load")
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError("attention_bias, mlp_bias: weights with biases do not load")
    if (settings.get("head_dim") or width // heads) != width // heads:
        raise ValueError(f"head_dim: {settings['head_dim']} must be hidden_size / num_attention_heads")
    if settings.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act: {settings['hidden_act']!r} must be silu")
    return TransformerConfig(
        vocabulary=settings["vocab_size"],
        width=width,
        depth=settings["num_hidden_layers"],
        heads=heads,
        key_value_heads=settings.get("num_key_value_heads"),
        feed_forward=settings["intermediate_size"],
        tied=bool(settings.get("tie_word_embeddings", False)),
        rope_theta=float(settings.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        norm_epsilon=float(settings.get("rms_norm_eps", 1e-6)),
    )


def _assemble(
    config: TransformerConfig,
    embedding: Tensor,
    layers: list[dict[str, Tensor]],
    norm: Tensor,
    output: Tensor | None,
) -> Transformer:
    # Logits here have a factor for the width, those of Llama have not: the last gain is divided by it.
    state = {"embedding.weight": embedding, "norm.weight": norm / logit_scale(config.width)}
    if output is not None:
        state["output.weight"] = output
    for i, layer in enumerate(layers):
        state |= {
            f"layers.{i}.attention_norm.weight": layer["attention_norm"],
            f"layers.{i}.attention.qkv.weight": torch.cat((layer["q"], layer["k"], layer["v"])),
            f"layers.{i}.attention.out.weight": layer["out"],
            f"layers.{i}.feed_forward_norm.weight": layer["feed_forward_norm"],
            f"layers.{i}.feed_forward.up.weight": torch.cat((layer["gate"], layer["up"])),
            f"layers.{i}.feed_forward.down.weight": layer["down"],
        }
    model = Transformer(config)
    model.load_state_dict(state)
    return model
