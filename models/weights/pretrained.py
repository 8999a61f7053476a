"""Llama checkpoints of other programs, read as a transformer: llama2.c's .bin, GGUF, folders of safetensors.

Nothing in them can run code: no pickle is ever opened, and no `trust_remote_code`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.other_libraries import first_line
from reducible.models.weights.llama import hugging_face_config, llama2c_config, load_hugging_face, load_llama2c

ACCEPTED = "a llama2.c .bin, a .gguf, or a folder with config.json and *.safetensors"


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint of another program."""
    return path.suffix in (".bin", ".gguf") and path.is_file() or (path / "config.json").is_file()


def checkpoint_files(path: Path) -> list[Path]:
    """The files that decide the weights.

    Raises ValueError if there is nothing to load; it names the path and what would be right.
    """
    if path.is_file() and path.suffix in (".bin", ".gguf"):
        return [path]
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not weights or not (path / "config.json").is_file():
        others = [file.name for file in sorted(path.glob("*.bin"))] if path.is_dir() else []
        hint = f" (pickled weights such as {others[0]} are not opened: convert them to safetensors)" if others else ""
        raise ValueError(f"{path}: is not a checkpoint{hint}; it must be {ACCEPTED}")
    return [path / "config.json", *weights]


def checkpoint_config(path: Path) -> TransformerConfig:
    """Its configuration, without reading the weights. Raises ValueError naming the path."""
    with _named(path):
        if path.suffix == ".bin":
            return llama2c_config(np.fromfile(path, "<i4", 7))
        return hugging_face_config(_settings(path))


def load_checkpoint(path: Path) -> Transformer:
    """The model in fp32 on the CPU. The quantised weights of a GGUF file are dequantised.

    Raises ValueError naming the path.
    """
    with _named(path):
        if path.suffix == ".bin":
            return load_llama2c(path)
        return load_hugging_face(_settings(path), _tensors(path))


def _settings(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".gguf":
        return _gguf_settings(path)
    settings: Mapping[str, Any] = json.loads((path / "config.json").read_text())
    if settings.get("model_type") != "llama":
        raise ValueError(f"model_type: {settings.get('model_type')!r} must be llama, the one shape that is read")
    return settings


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".gguf":
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = LlamaConfig(**_settings(path))
        # It undoes what GGUF does to queries and keys, and takes every quantisation that llama.cpp writes.
        loaded = LlamaForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, config=config)
        return {name: tensor.float() for name, tensor in loaded.state_dict().items()}
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        state |= {name: tensor.float() for name, tensor in load_file(file).items()}
    return state


def _gguf_settings(path: Path) -> Mapping[str, Any]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    settings: Mapping[str, Any] = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    if settings.get("model_type") != "llama":
        raise ValueError(f"architecture: {settings.get('model_type')!r} must be llama, the one shape that is read")
    return settings


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn every error about a file into one line that begins with its path."""
    try:
        yield
    except Exception as error:
        message = f"has no {error}" if isinstance(error, KeyError) else first_line(error)
        if message.startswith(str(path)):
            raise ValueError(message) from None
        raise ValueError(f"{path}: {message}") from None
