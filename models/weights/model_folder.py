"""A trained model as a folder: config.json and model.safetensors. Nothing in it can run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reducible.models.families.registry import family
from reducible.models.other_libraries import first_line


def load_model(folder: Path) -> nn.Module:
    """The model on the CPU, in evaluation mode.

    Raises:
        ValueError: naming the folder, where it holds no model or weights of another shape.
    """
    try:
        content = json.loads((folder / "config.json").read_text())
        kind = family(content["family"])
        model = kind.build(kind.config(**content["config"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: holds no model that reducible saved ({first_line(error)})") from None
    return model.eval()


def save_weights(weights: Mapping[str, Tensor], family_name: str, config: Mapping[str, Any], folder: Path) -> None:
    """What `load_model` reads: the tensors of a whole state dict, and the configuration they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"family": family_name, "config": dict(config)}, indent=1) + "\n")
