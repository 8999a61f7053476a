"""LoRA: y = x W0 + (alpha / r) x L1 L2, where W0 is frozen and only L1 and L2 are trained (Hu et al. 2021).

Adapters change every family's modules in place, so forward, blocks and the other methods stay. nn.Linear and
nn.Embedding get peft's own layers. models/finetune/held_matrices.py holds the matrices of nn.LSTM, nn.GRU and nn.RNN,
and those of a model that owns its matrices itself (linear-gaussian). peft's ParamWrapper can adapt a recurrence, but
not a quantised one. It requires the same targets for all adapters, and keeps one dense sum until the next call and
another through backward. It also takes longer: a step of two LSTM layers of 512 on 16 x 32 tokens takes 1.23 times as
long as in full training, and 1.12 times here. (With narrow GRU and Elman layers the code here is a tenth slower.) The
files are those of peft: adapter_model.safetensors and adapter_config.json can be read by stock peft and written by it.
"""

import difflib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reducible.models.contract import Model
from reducible.models.finetune.held_matrices import HeldMatrix, HoldsMatrices, hold, looked_at_only
from reducible.models.finetune.mixed_in import mix_in
from reducible.models.layers.width_rule import ParameterGroup
from reducible.models.other_libraries import first_line, import_quietly
from reducible.models.quantise.quantised_base import plain_name

DEFAULT = "default"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What peft writes before the name of every tensor in a file."""


@dataclass(frozen=True)
class Adapter:
    """The keys of a recipe's `adapter`. Raises ValueError naming a key whose value is not allowed."""

    rank: int = 8
    alpha: float = 16.0
    """The update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of L1, not on that of W0."""
    targets: tuple[str, ...] = ()
    """Patterns, such as layers.*.attention.qkv, *weight_hh*. Empty: all except embeddings and output tables."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"adapter.rank: {self.rank!r} must be a whole number of at least 1")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not self.alpha > 0:
            raise ValueError(f"adapter.alpha: {self.alpha!r} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout: {self.dropout!r} must be at least 0 and below 1")
        if isinstance(self.targets, str) or not all(isinstance(pattern, str) for pattern in self.targets):
            raise ValueError(f"adapter.targets: {self.targets!r} must be a list of patterns")
        object.__setattr__(self, "targets", tuple(self.targets))  # a list, as YAML has it


class Place(NamedTuple):
    """The place of a matrix that can be adapted."""

    layer: str
    """The name of its module; empty for the model itself."""
    parameter: str | None
    """The name of the matrix in a recurrence or in the model itself. None: the weight of a linear layer or a table."""

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.layer, self.parameter) if part)


class Adapted:
    """Mixed into the class of a model with adapters: what the train step asks of it."""

    @property
    def compiles(self) -> bool:
        """False if matrices are made again in backward, which torch.compile cannot put into a graph."""
        held = any(isinstance(module, HoldsMatrices) for module in self.modules())  # type: ignore[attr-defined]
        return getattr(super(), "compiles", True) and not held

    def parameter_groups(self) -> list[ParameterGroup]:
        return adapter_groups(self)  # type: ignore[arg-type]

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers, also for dropout on the input of an adapter."""
        return bool(super().stochastic) or any(  # type: ignore[misc]
            getattr(drop, "p", 0.0) > 0
            for layer in _peft_layers(self).values()  # type: ignore[arg-type]
            for drop in layer.lora_dropout.values()
        )


def add_adapter(model: Model, adapter: Adapter, name: str = DEFAULT) -> None:
    """Freezes the model and adds an adapter that changes nothing yet and is used and trained from now on.

    Call it before checkpointing, sharding and compiling. L1 is drawn from torch's global generator, and L2 is 0.

    Raises:
        ValueError: the name is taken, a pattern matches nothing, or a matrix cannot be adapted or have dropout. The
            line names the key.
    """
    places = chosen(model, adapter.targets)
    recurrent = next((place for place in places if place.parameter is not None), None)
    if adapter.dropout and recurrent is not None:
        raise ValueError(
            f"adapter.dropout: {adapter.dropout} cannot act on the input of {recurrent.name}, which stays inside the "
            "fused kernel; set it to 0 or leave that matrix out of adapter.targets"
        )
    _insert(model, places, name, adapter.rank, adapter.alpha, adapter.dropout)


def adapter_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters by their names in the model: L1 and L2 of the adapter in use."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The same as a state for checkpoints. It is not copied: loading writes into it."""
    return {name: parameter.detach() for name, parameter in adapter_parameters(model)}


def adapter_groups(model: Model) -> list[ParameterGroup]:
    """The trained parameters in groups for the optimizer, with the recipe's learning rate and weight decay unchanged.

    The model says which group an adapter belongs to, because its schedule may skip a group in some steps (vae).
    """
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in adapter_parameters(model):
        matrix = plain_name(name.partition(".lora_")[0])
        groups.setdefault(model.adapter_group(matrix), []).append(parameter)
    return [ParameterGroup(name, parameters, 1.0, 1.0) for name, parameters in groups.items()]


def adapter_names(model: nn.Module) -> list[str]:
    """All adapters that the model holds."""
    names = {name: None for layer in _peft_layers(model).values() for name in layer.scaling}
    names |= {name: None for matrix in _matrices(model).values() for name in matrix.scaling}
    return list(names)


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Sets the adapter to use and train from now on. None: use the base alone and train nothing.

    Raises:
        ValueError: there is no such adapter; the line names those that exist.
    """
    if name is not None and name not in adapter_names(model):
        raise ValueError(f"adapter {name!r}: the model has {', '.join(adapter_names(model)) or 'none'}")
    for layer in _peft_layers(model).values():
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter([name])
    for matrix in _matrices(model).values():
        matrix.use(name)


# What can be adapted --------------------------------------------------------------------------------------------------


def candidates(model: nn.Module) -> dict[str, Place]:
    """Every matrix that can be adapted, by name."""
    places: list[Place] = []
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if wrapped and name.startswith(wrapped):
            continue
        if _is_peft_layer(module):
            wrapped += (f"{name}.",)
            places.append(Place(name, None))
        elif isinstance(module, nn.Linear | nn.Embedding):
            places.append(Place(name, None))
        elif isinstance(module, nn.RNNBase):
            places += [Place(name, parameter) for parameter in _in_order(module) if parameter.startswith("weight")]
        elif module is model:
            places += [Place(name, parameter) for parameter in _in_order(module)]
    return {place.name: place for place in places}


def chosen(model: Model, targets: Sequence[str]) -> list[Place]:
    """The matrices that the patterns name. Without patterns: all except tables of embeddings and outputs.

    Raises:
        ValueError: a pattern, which the line names, matches nothing, or matches a table that is used twice.
    """
    places = candidates(model)
    if not targets:
        hidden = [place for place in places.values() if not _is_one_of(model.tables(), model, place)]
        if not hidden:
            raise ValueError("adapter.targets: the model has no matrix to adapt, except its tables")
        return hidden
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in places):
            nearest = difflib.get_close_matches(pattern, places, n=3, cutoff=0)
            raise ValueError(f"adapter.targets: {pattern!r} matches no matrix; nearest are {', '.join(nearest)}")
    found = [place for name, place in places.items() if any(fnmatchcase(name, pattern) for pattern in targets)]
    for place in found:
        if _is_one_of(model.tied_tables(), model, place):
            raise ValueError(
                f"adapter.targets: {place.name} is the output table too (model.tied), and an adapter would act on one "
                "of its two uses only; leave it out"
            )
    return found


def _is_one_of(tables: Sequence[nn.Module], model: Model, place: Place) -> bool:
    layer: Any = model.get_submodule(place.layer)
    known = (layer, layer.get_base_layer()) if _is_peft_layer(layer) else (layer,)
    return place.parameter is None and any(table is module for table in tables for module in known)


def _in_order(module: nn.Module) -> list[str]:
    """The names of a module's own matrices, in the order before some were taken out: the order in which peft nests."""
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    held = list(module.matrices) if isinstance(module, HoldsMatrices) else []
    return sorted(held + [name for name, p in module.named_parameters(recurse=False) if p.ndim == 2])


def _is_peft_layer(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _peft_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if _is_peft_layer(module)}


def _matrices(model: nn.Module) -> dict[str, HeldMatrix]:
    """Matrices with updates, by the name that the matrix has in the plain model."""
    return {
        plain_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, HeldMatrix) and module.scaling
    }


# Putting adapters in --------------------------------------------------------------------------------------------------


def _insert(model: nn.Module, places: Sequence[Place], name: str, rank: int, alpha: float, dropout: float) -> None:
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"adapter {name!r}: a name is made of letters, digits and _")
    if name in adapter_names(model):
        raise ValueError(f"adapter {name!r}: the model has one of that name already; choose another")
    model.requires_grad_(False)
    modules = [place.layer for place in places if place.parameter is None]
    if modules:
        peft = _peft()
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules)
        with warnings.catch_warnings(), looked_at_only(model):  # peft reads every matrix a dozen times
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter: on purpose
            peft.inject_adapter_in_model(config, model, name)
        made = [at for at, layer in _peft_layers(model).items() if name in layer.scaling]
        assert sorted(made) == sorted(modules), "peft matches the end of a name, which must be no other name's end"
    for place in places:
        if place.parameter is not None:
            (matrix,) = hold(model.get_submodule(place.layer), [place.parameter])
            matrix.add(name, rank, alpha)
    if not isinstance(model, Adapted):
        mix_in(model, Adapted)
    use_adapter(model, name)


def _peft() -> Any:
    """Imported when it is needed: it takes seconds."""
    with import_quietly():
        import peft
    return peft


# Files ----------------------------------------------------------------------------------------------------------------


def save_adapter(model: nn.Module, folder: Path, name: str = DEFAULT, write: bool = True) -> None:
    """adapter_model.safetensors and adapter_config.json, as stock peft would have written them.

    If the model is sharded, every rank calls it and one writes. Stock peft cannot load the adapters of linear-gaussian,
    which owns its matrices, because it refuses parameters of the top-level module.
    """
    updates = _updates(model, name)
    if not updates:
        raise ValueError(f"adapter {name!r}: the model has {', '.join(adapter_names(model)) or 'none'}")
    rank, alpha, dropout = _settings(model, name)
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(place.layer for place in updates if place.parameter is None),
        target_parameters=sorted(place.name for place in updates if place.parameter is not None) or None,
        inference_mode=True,
    )
    tensors = {}
    for place, (A, B) in updates.items():
        for key, tensor in zip(_keys(model, place, list(updates)), (A, B), strict=True):
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            tensors[key] = whole.detach().cpu().contiguous()
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})


def load_adapter(model: Model, folder: Path, name: str = DEFAULT) -> None:
    """Adds an adapter from files, also those of stock peft. It is used and trained from now on.

    Raises:
        ValueError: the file does not fit the model; the line names the file and what does not fit.
    """
    settings, tensors = _read(folder)
    alpha, rank = settings["lora_alpha"], settings["r"]
    if settings.get("use_rslora"):
        alpha *= rank**0.5  # divided by the root of the rank and not by the rank
    places = _places(model, settings, tensors, folder)
    for place, keys in places.items():
        A, B = (tensors[key] for key in keys)
        out, in_ = _shape(model, place)
        if A.shape != (rank, in_) or B.shape != (out, rank):
            raise ValueError(
                f"{folder / WEIGHTS}: {place.name} is {out} x {in_} in this model, and the file's update is "
                f"{B.shape[0]} x {A.shape[1]} of rank {A.shape[0]}, where {CONFIG} says {rank}"
            )
    _insert(model, list(places), name, rank, alpha, settings.get("lora_dropout", 0.0))
    updates = _updates(model, name)
    with torch.no_grad():
        for place, keys in places.items():
            for parameter, key in zip(updates[place], keys, strict=True):
                parameter.copy_(tensors[key])


REFUSED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "fan_in_fan_out")
"""Settings of peft that change what an adapter computes and that are not implemented here."""


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        settings = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: holds no adapter ({first_line(error)})") from None
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG}: peft_type is {settings.get('peft_type')!r}; only LORA loads")
    used = [key for key in REFUSED if settings.get(key)]
    if settings.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ValueError(f"{folder / CONFIG}: {', '.join(used)}: not supported; only plain LoRA loads")
    return settings, tensors


def _places(
    model: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> dict[Place, tuple[str, str]]:
    """The names of the pair of tensors in a file, for each matrix that they belong to."""
    patterns = settings.get("target_parameters") or []
    all_places = list(candidates(model).values())
    # peft compares only the end of a name.
    parameters = [
        place
        for place in all_places
        if place.parameter and any(f".{place.name}".endswith(f".{pattern}") for pattern in patterns)
    ]
    found: dict[Place, tuple[str, str]] = {}
    for place in all_places:
        keys = _keys(model, place, parameters)
        if all(key in tensors for key in keys) and (place.parameter is None or place in parameters):
            found[place] = keys
    strangers = set(tensors) - {key for keys in found.values() for key in keys}
    if strangers:
        raise ValueError(f"{folder / WEIGHTS}: {min(strangers)} belongs to no matrix of this model")
    listed = settings.get("target_modules")
    whole = [
        place for place in all_places if isinstance(listed, list) and not place.parameter and place.layer in listed
    ]
    lost = [place.name for place in [*whole, *parameters] if place not in found]
    if lost:
        raise ValueError(f"{folder / WEIGHTS}: lacks the update of {lost[0]}, which {CONFIG} lists")
    return found


def _keys(model: nn.Module, place: Place, places: Sequence[Place]) -> tuple[str, str]:
    """The names of L1 and L2 in a file. peft wraps a layer once for each parameter, and the first is the innermost."""
    kind = "lora_"
    inside = ""
    if place.parameter is None:
        layer: Any = model.get_submodule(place.layer)
        base = layer.get_base_layer() if _is_peft_layer(layer) else layer
        kind = "lora_embedding_" if isinstance(base, nn.Embedding) else "lora_"
    else:
        together = {other.parameter for other in places if other.layer == place.layer}
        nested = [name for name in _in_order(model.get_submodule(place.layer)) if name in together]
        inside = "base_layer." * (len(nested) - 1 - nested.index(place.parameter)) if place.parameter in nested else ""
    start = PREFIX + (f"{place.layer}." if place.layer else "") + inside + kind
    end = "" if kind == "lora_embedding_" else ".weight"
    return f"{start}A{end}", f"{start}B{end}"


def _updates(model: nn.Module, name: str) -> dict[Place, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of an adapter, as peft stores them, by place."""
    updates = {}
    layers, matrices = _peft_layers(model), _matrices(model)
    for place in candidates(model).values():
        if place.parameter is not None:
            matrix = matrices.get(place.name)
            if matrix is not None and name in matrix.scaling:
                updates[place] = (matrix.lora_A[name], matrix.lora_B[name])
        elif place.layer in layers and name in layers[place.layer].scaling:
            layer = layers[place.layer]
            if name in layer.lora_A:
                updates[place] = (layer.lora_A[name].weight, layer.lora_B[name].weight)
            else:
                updates[place] = (layer.lora_embedding_A[name], layer.lora_embedding_B[name])
    return updates


def _settings(model: nn.Module, name: str) -> tuple[int, float, float]:
    """Rank, alpha and dropout of an adapter."""
    for layer in _peft_layers(model).values():
        if name in layer.scaling:
            return layer.r[name], layer.lora_alpha[name], float(getattr(layer.lora_dropout[name], "p", 0.0))
    matrix = next(matrix for matrix in _matrices(model).values() if name in matrix.scaling)
    rank = matrix.lora_A[name].shape[0]
    return rank, matrix.scaling[name] * rank, 0.0


def _shape(model: nn.Module, place: Place) -> tuple[int, int]:
    """(out, in) of a matrix. An embedding is read by rows; its shape is that of a matrix for one-hot vectors."""
    layer: Any = model.get_submodule(place.layer)
    if place.parameter is not None:
        held: Any = layer.matrices if isinstance(layer, HoldsMatrices) else {}
        matrix: Any = held[place.parameter] if place.parameter in held else layer._parameters[place.parameter]
        return matrix.shape[0], matrix.shape[1]
    base = layer.get_base_layer() if _is_peft_layer(layer) else layer
    if isinstance(base, nn.Embedding):
        return base.embedding_dim, base.num_embeddings
    return base.out_features, base.in_features
