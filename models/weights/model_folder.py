"""A trained model as a folder: config.json and model.safetensors. Nothing in it can run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from reducible.models.contract import Model
from reducible.models.families.registry import family
from reducible.models.other_libraries import first_line


def load_model(folder: Path) -> Model:
    """The model on the CPU, in evaluation mode.

    Raises:
        ValueError: the folder, which the line names, holds no model, or weights of another shape.
    """
    try:
        content = json.loads((folder / "config.json").read_text())
        kind = family(content["family"])
        model: Model = kind.build(kind.config(**content["config"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: holds no model that reducible saved ({first_line(error)})") from None
    return model.eval()


def family_name(folder: Path) -> str:
    """The family of the model in such a folder, as `model.family` of its recipe names it."""
    return str(json.loads((folder / "config.json").read_text())["family"])


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, as safetensors requires. Tied tables are one tensor under two names."""
    known: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        place = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if place in known else whole
        known.add(place)
    return found


def save_weights(weights: Mapping[str, Tensor], family_name: str, config: Mapping[str, Any], folder: Path) -> None:
    """Writes what `load_model` reads: the tensors of a whole state dict and their configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(apart(weights), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"family": family_name, "config": dict(config)}, indent=1) + "\n")
