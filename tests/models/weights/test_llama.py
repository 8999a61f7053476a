"""Llama-shaped weights: the published 260K checkpoint, and Hugging Face's names and rotation.

The checkpoint's published validation loss (1.2968 on TinyStories) is not checked: that text is not at hand. What is
checked: the published greedy sample token for token, and our loss on it against a forward pass written anew in NumPy.
"""

import struct

import numpy as np
import pytest
import torch

from reducible.models.generate.sample import generate
from reducible.models.weights.llama import hugging_face_config, load_hugging_face, load_llama2c

SAMPLE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@pytest.fixture(scope="module")
def stories(datasets):
    return datasets / "stories260K"


def token_texts(path):
    """tok512.bin of llama2.c: the longest token's length, then (score, length, bytes) for every id."""
    raw, at, texts = path.read_bytes(), 4, []
    while at < len(raw):
        _, length = struct.unpack_from("<fi", raw, at)
        texts.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return texts


class NumpyLlama:
    """llama2.c's run.c, read anew: float64, one token after the other, nothing shared with models/."""

    def __init__(self, path):
        raw = path.read_bytes()
        self.header = dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", raw[:28])
        numbers = np.frombuffer(raw[28:], "<f4").astype(np.float64)
        head = dim // heads
        shapes = [(vocabulary, dim), (layers, dim), (layers, dim, dim), (layers, kv_heads * head, dim)]
        shapes += [(layers, kv_heads * head, dim), (layers, dim, dim), (layers, dim), (layers, hidden, dim)]
        shapes += [(layers, dim, hidden), (layers, hidden, dim), (dim,), (2, context, head // 2)]
        cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])
        assert cuts[-1] == len(numbers)
        parts = [part.reshape(shape) for part, shape in zip(np.split(numbers, cuts[:-1]), shapes, strict=True)]
        self.table, self.norm1, self.q, self.k, self.v, self.o, self.norm2, self.w1, self.w2, self.w3 = parts[:10]
        self.last_norm, (self.cos, self.sin) = parts[10], parts[11]  # its own tables of cos and sin

    def logits(self, tokens):
        dim, _, layers, heads, kv_heads, _, _ = self.header
        head, keys, values, out = dim // heads, [[] for _ in range(layers)], [[] for _ in range(layers)], []

        def norm(x, gain):
            return x / np.sqrt(np.mean(x * x) + 1e-5) * gain

        def turn(x, position):
            pairs = x.reshape(-1, head // 2, 2)
            cos, sin = self.cos[position], self.sin[position]
            a, b = pairs[..., 0], pairs[..., 1]
            return np.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(-1, head)

        for position, token in enumerate(tokens):
            x = self.table[token]
            for i in range(layers):
                y = norm(x, self.norm1[i])
                q = turn(self.q[i] @ y, position)
                keys[i].append(turn(self.k[i] @ y, position))
                values[i].append((self.v[i] @ y).reshape(-1, head))
                mixed = []
                for h in range(heads):
                    g = h // (heads // kv_heads)
                    scores = np.array([q[h] @ key[g] for key in keys[i]]) / np.sqrt(head)
                    weights = np.exp(scores - scores.max())
                    weights /= weights.sum()
                    mixed.append(sum(w * value[g] for w, value in zip(weights, values[i], strict=True)))
                x = x + self.o[i] @ np.concatenate(mixed)
                y = norm(x, self.norm2[i])
                gate = self.w1[i] @ y
                x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ y))
            out.append(self.table @ norm(x, self.last_norm))
        return np.array(out)


def mean_nats(logits, targets):
    logits = logits - logits.max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]))


def test_the_published_sample_comes_out_word_for_word(stories):
    model = load_llama2c(stories / "stories260K.bin")
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    written = generate(model, [1], 60, temperature=0)
    texts = token_texts(stories / "tok512.bin")
    # llama2.c drops the blank with which the first token after the start begins.
    assert b"".join(texts[token] for token in written).decode().lstrip(" ").startswith(SAMPLE)


def test_logits_and_loss_equal_an_independent_forward_pass(stories):
    model, reference = load_llama2c(stories / "stories260K.bin"), NumpyLlama(stories / "stories260K.bin")
    tokens = [1, *generate(model, [1], 60, temperature=0)]
    expected = reference.logits(tokens[:-1])
    assert expected.argmax(-1).tolist() == tokens[1:]
    with torch.inference_mode():
        ours = model.logits(torch.tensor([tokens[:-1]]))[0].double().numpy()
        loss = model({"inputs": torch.tensor([tokens[:-1]]), "targets": torch.tensor([tokens[1:]])})
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert float(loss.nats / loss.units) == pytest.approx(mean_nats(expected, tokens[1:]), abs=1e-5)


def test_a_cut_file_is_refused_by_name(stories, tmp_path):
    cut = tmp_path / "cut.bin"
    cut.write_bytes((stories / "stories260K.bin").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut.bin: ends before the weights"):
        load_llama2c(cut)


SETTINGS = {
    "vocab_size": 53,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
STORIES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
"""stories260K in the words of Hugging Face."""


def test_hugging_faces_names_and_rotation_give_the_same_logits(stories):
    """The published weights, renamed and reordered as Hugging Face's converter does it, load back to the same model."""
    model = load_llama2c(stories / "stories260K.bin")
    ours, config = model.state_dict(), model.config
    settings = {**STORIES, "rms_norm_eps": 1e-5}

    def permute(w, heads, rows):  # transformers' convert_llama_weights_to_hf.py
        return w.view(heads, rows // heads // 2, 2, 64).transpose(1, 2).reshape(rows, 64)

    state = {"model.embed_tokens.weight": ours["embedding.weight"]}
    state["model.norm.weight"] = ours["norm.weight"] * model.logit_scale
    for i in range(config.depth):
        layer, theirs = f"layers.{i}", f"model.layers.{i}"
        q, k, v = ours[f"{layer}.attention.qkv.weight"].split((64, 32, 32))
        gate, up = ours[f"{layer}.feed_forward.up.weight"].chunk(2)
        state |= {
            f"{theirs}.self_attn.q_proj.weight": permute(q, 8, 64),
            f"{theirs}.self_attn.k_proj.weight": permute(k, 4, 32),
            f"{theirs}.self_attn.v_proj.weight": v,
            f"{theirs}.self_attn.o_proj.weight": ours[f"{layer}.attention.out.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": ours[f"{layer}.feed_forward.down.weight"],
            f"{theirs}.input_layernorm.weight": ours[f"{layer}.attention_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": ours[f"{layer}.feed_forward_norm.weight"],
        }
    again = load_hugging_face(settings, state)
    assert again.config == config
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, ours[name], rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_equals_transformers_own_llama(tied):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    settings = {**SETTINGS, "tie_word_embeddings": tied}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    ours = load_hugging_face(theirs.config.to_dict(), theirs.state_dict()).eval()
    tokens = torch.randint(53, (2, 30))
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_the_published_checkpoint_in_transformers_own_llama(stories):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = load_llama2c(stories / "stories260K.bin")
    ours = model.state_dict()
    config = transformers.LlamaConfig(**SETTINGS | STORIES | {"rope_theta": 10000.0, "max_position_embeddings": 512})
    theirs = transformers.LlamaForCausalLM(config).eval()

    def halves(w, heads):
        return w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    state = {"model.embed_tokens.weight": ours["embedding.weight"]}
    state["model.norm.weight"] = ours["norm.weight"] * model.logit_scale
    state["lm_head.weight"] = ours["embedding.weight"]
    for i in range(5):
        layer = {name.removeprefix(f"layers.{i}."): w for name, w in ours.items() if name.startswith(f"layers.{i}.")}
        q, k, v = layer["attention.qkv.weight"].split((64, 32, 32))
        gate, up = layer["feed_forward.up.weight"].chunk(2)
        named = {
            "self_attn.q_proj": halves(q, 8),
            "self_attn.k_proj": halves(k, 4),
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer["attention.out.weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer["feed_forward.down.weight"],
            "input_layernorm": layer["attention_norm.weight"],
            "post_attention_layernorm": layer["feed_forward_norm.weight"],
        }
        state |= {f"model.layers.{i}.{name}.weight": w for name, w in named.items()}
    theirs.load_state_dict(state)
    tokens = torch.tensor([[1, *generate(model, [1], 200, temperature=0.8, seed=0)]])
    with torch.inference_mode():
        expected = float(theirs(tokens, labels=tokens).loss)
        loss = model({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
    assert float(loss.nats / loss.units) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 16}, "head_dim: 16 must be"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_what_would_load_wrongly_is_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        hugging_face_config({**SETTINGS, **extra})
