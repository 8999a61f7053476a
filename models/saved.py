"""A trained model as a folder: config.json and model.safetensors. Nothing in it can run code."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from models.families import family


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
        raise ValueError(f"{folder}: holds no model of ours ({str(error).splitlines()[0]})") from None
    return model.eval()
