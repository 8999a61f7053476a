"""Checkpoints from elsewhere: folders of safetensors and GGUF through transformers' own Llama, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reducible.models.other_libraries import first_line
from reducible.models.weights.llama import load_llama2c
from reducible.models.weights.pretrained import checkpoint_config, checkpoint_files, is_checkpoint, load_checkpoint

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()


def same_logits(theirs, ours, tolerance=1e-5):
    tokens = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(tokens), theirs(tokens).logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shards", ["10GB", "40KB"])
def test_a_folder_that_transformers_saved_gives_its_logits(theirs, tmp_path, shards):
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "40KB")
    assert is_checkpoint(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert ours.config == checkpoint_config(tmp_path)
    same_logits(theirs, ours)


def write_gguf(theirs, path):
    """As llama.cpp's converter writes it: its names, and the rows of queries and keys in its order; fp32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(theirs.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        given = name.removesuffix(".weight")
        at = given.removeprefix("model.layers.")
        their = names[given] if given in names else f"blk.{at.split('.')[0]}.{names[at.split('.', 1)[1]]}"
        writer.add_tensor(f"{their}.weight", np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_gives_the_logits_of_the_model_it_was_made_of(theirs, tmp_path):
    write_gguf(theirs, tmp_path / "small.gguf")
    assert checkpoint_files(tmp_path / "small.gguf") == [tmp_path / "small.gguf"]
    same_logits(theirs, load_checkpoint(tmp_path / "small.gguf"))


def test_llama2cs_header_alone_tells_the_config(datasets):
    path = datasets / "stories260K" / "stories260K.bin"
    assert checkpoint_config(path) == load_llama2c(path).config


def test_pickled_weights_are_never_opened(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(
        ValueError, match=r"is not a checkpoint \(pickled weights such as pytorch_model.bin are not opened"
    ):
        checkpoint_files(tmp_path)


def test_a_missing_tensor_is_one_line_with_the_path(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    state = {
        name: t.clone() for name, t in theirs.state_dict().items() if "down_proj" not in name and "lm_" not in name
    }
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no 'model.layers.0.mlp.down_proj.weight'") as error:
        load_checkpoint(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("missing", ["hidden_size", "vocab_size"])
def test_a_missing_setting_is_one_line_with_the_path(tmp_path, missing):
    settings = {"model_type": "llama", **CONFIG}
    (tmp_path / "config.json").write_text(json.dumps({key: settings[key] for key in settings if key != missing}))
    with pytest.raises(ValueError, match=rf"^{tmp_path}: has no '{missing}'$"):
        checkpoint_config(tmp_path)


def test_a_tensor_of_another_shape_is_named(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    state = {name: t.clone() for name, t in theirs.state_dict().items()}
    save_file(state | {"model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"size mismatch for norm.weight: .*\[3\]") as error:
        load_checkpoint(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_an_error_without_words_is_named_by_its_type():
    assert first_line(EOFError()) == "EOFError"


def test_another_architecture_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"model_type: 'gpt2' must be llama"):
        checkpoint_config(tmp_path)


@pytest.mark.parametrize("name", ["x.bin", "x.gguf"])
def test_a_torn_file_is_one_line_with_the_path(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF torn" if name == "x.gguf" else b"torn")
    with pytest.raises(ValueError) as error:
        checkpoint_config(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
