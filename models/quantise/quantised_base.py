"""A frozen base in 4 or 8 bits a number, by bitsandbytes' kernels: QLoRA (Dettmers et al. 2023).

Each block of 64 numbers has one constant, the largest absolute value in it. With double quantisation these constants
are 8-bit numbers as well, in blocks of 256. A number then takes 0.516 bytes in nf4 and fp4, and 1.016 in int8. The
levels of nf4 are quantiles of the normal distribution. Those of int8 are evenly spaced and suit weights that were drawn
uniformly (relative error 0.004, that of nf4 0.09). models/quantise/reference.py explains the mathematics.

models/finetune/held_matrices.py holds the matrices of nn.Linear, nn.LSTM, nn.GRU and nn.RNN. It makes them dense for a
call and again in backward, and never keeps them. bitsandbytes' own Linear4bit serves only 4 bits and linear layers. On
a CPU with bf16 instructions it repacks its codes in evaluation, so that they differ from the saved ones.

Numbers are quantised once, because the kernels of a CPU and of a GPU give slightly different codes. Files hold the
codes.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reducible.models.contract import Model
from reducible.models.families.registry import family
from reducible.models.finetune.held_matrices import HeldMatrix, hold
from reducible.models.other_libraries import first_line, import_quietly
from reducible.models.step_settings import FewBits
from reducible.models.weights.model_folder import apart

BLOCK, CONSTANTS_BLOCK = 64, 256
SMALLEST = 1024
"""The fewest numbers of a matrix that is quantised. Smaller ones would save nothing."""

KINDS: tuple[FewBits, ...] = get_args(FewBits)
FOUR_BITS: tuple[FewBits, ...] = ("nf4", "fp4")


@dataclass(frozen=True)
class Quantisation:
    """The keys of a recipe's `quantisation`. Raises ValueError naming a key whose value is not allowed."""

    kind: FewBits = "nf4"
    double: bool = True
    """Whether the constants are quantised too."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"quantisation.kind: {self.kind!r} must be one of {', '.join(KINDS)}")
        if not isinstance(self.double, bool):
            raise ValueError(f"quantisation.double: {self.double!r} must be true or false")


class Blocks(nn.Module):
    """A matrix in blocks. Calling it gives the dense matrix in fp32.

    It holds parameters without gradient instead of buffers, because DDP would broadcast buffers in every step.
    """

    def __init__(self, shape: tuple[int, int], quantisation: Quantisation, tensors: Mapping[str, Tensor]) -> None:
        """`tensors`: codes and constants; with double quantisation also the constants' scales and offset."""
        super().__init__()
        self.shape, self.quantisation = shape, quantisation
        for name in names_of(quantisation):
            self.register_parameter(name, nn.Parameter(tensors[name], requires_grad=False))

    @classmethod
    def of(cls, dense: Tensor, quantisation: Quantisation) -> "Blocks":
        kernels, dense = _kernels(), dense.detach().float().contiguous()
        if quantisation.kind in FOUR_BITS:
            codes, state = kernels.quantize_4bit(dense, blocksize=BLOCK, quant_type=quantisation.kind)
        else:
            codes, state = kernels.quantize_blockwise(dense, code=_levels(dense.device), blocksize=BLOCK)
        tensors = {"codes": codes, "constants": state.absmax}
        if quantisation.double:
            tensors["offset"] = state.absmax.mean().reshape(1)  # FSDP2 takes no scalars
            tensors["constants"], second = kernels.quantize_blockwise(
                state.absmax - tensors["offset"], blocksize=CONSTANTS_BLOCK
            )
            tensors["scales"] = second.absmax
        return cls((dense.shape[0], dense.shape[1]), quantisation, tensors)

    @classmethod
    def like(cls, dense: Tensor, quantisation: Quantisation) -> "Blocks":
        """Blocks of the same size without contents: for a rehearsal (memory/rehearsed_step.py)."""
        count = -(-dense.numel() // BLOCK)
        codes = (_codes(dense.numel(), quantisation), 1) if quantisation.kind in FOUR_BITS else dense.shape
        tensors = {
            "codes": dense.new_empty(codes, dtype=torch.uint8),
            "constants": dense.new_empty(count, dtype=torch.uint8 if quantisation.double else torch.float32),
            "scales": dense.new_empty(-(-count // CONSTANTS_BLOCK), dtype=torch.float32),
            "offset": dense.new_empty(1, dtype=torch.float32),
        }
        return cls((dense.shape[0], dense.shape[1]), quantisation, tensors)

    def forward(self) -> Tensor:
        kernels, constants = _kernels(), self.constants
        if self.quantisation.double:
            constants = kernels.dequantize_blockwise(constants, absmax=self.scales, blocksize=CONSTANTS_BLOCK)
            constants += self.offset
        if self.quantisation.kind not in FOUR_BITS:
            levels = _levels(self.codes.device)
            return kernels.dequantize_blockwise(self.codes, absmax=constants, code=levels, blocksize=BLOCK)
        # bitsandbytes 0.50 on a CPU begins a new block with every row, which is wrong if rows are not whole numbers of
        # blocks. With rows of one block each it is right.
        count = math.prod(self.shape)
        rows = count // BLOCK if count % BLOCK == 0 else 1
        state = kernels.QuantState(
            absmax=constants,
            shape=torch.Size((rows, count // rows)),
            dtype=torch.float32,
            blocksize=BLOCK,
            quant_type=self.quantisation.kind,
        )
        return kernels.dequantize_4bit(self.codes, state).view(self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.quantisation.kind}"


def names_of(quantisation: Quantisation) -> tuple[str, ...]:
    """The names of the tensors of a matrix in blocks."""
    return ("codes", "constants", "scales", "offset") if quantisation.double else ("codes", "constants")


@cache
def _kernels() -> Any:
    """Imported when it is needed: it takes seconds."""
    with import_quietly():
        import bitsandbytes.functional
    return bitsandbytes.functional


@cache
def _levels(device: torch.device) -> Tensor:
    """The levels of int8: from -127/127 to 127/127 in even steps."""
    return _kernels().create_linear_map().to(device)


def make_tables() -> None:
    """Makes the tables that bitsandbytes makes at its first call, because a rehearsal needs them as real tensors."""
    kernels = _kernels()
    _levels(torch.device("cpu"))
    kernels.name2qmap.setdefault("dynamic", kernels.create_dynamic_map())


# A model's matrices ---------------------------------------------------------------------------------------------------


def quantise_model(model: nn.Module, quantisation: Quantisation, blocks: Any = Blocks.of) -> None:
    """Puts the matrices of linear and recurrent layers into blocks, in place, and frees the dense ones one by one.

    Tables of embeddings and outputs, gains, biases and matrices of fewer than SMALLEST numbers stay as they are.
    `model` may be a part of a model, so that a model can be built and quantised block by block. `blocks` makes them:
    Blocks.of, or Blocks.like if only sizes matter.

    Raises:
        ValueError: there is nothing to quantise, or the model already has adapters.
    """
    if any(".lora_" in f".{name}" for name, _ in model.named_parameters()):
        raise ValueError("a model is quantised before it gets adapters")
    found = list(_large(model))
    if not found:
        raise ValueError(f"the model has no matrix of {SMALLEST} numbers or more to quantise")
    for layer, name in found:
        (matrix,) = hold(layer, [name])
        matrix.replace(blocks(matrix.frozen(), quantisation))


def _large(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    tables = model.tables() if isinstance(model, Model) else []
    for module in model.modules():
        if any(module is table for table in tables):
            continue
        names: list[str] = []
        if isinstance(module, nn.Linear):
            names = ["weight"]
        elif isinstance(module, nn.RNNBase):
            names = [name for name in module._flat_weights_names if name.startswith("weight")]
        for name in names:
            parameter = module._parameters.get(name)
            if parameter is not None and parameter.numel() >= SMALLEST:
                yield module, name


def quantised(model: nn.Module) -> dict[str, Blocks]:
    """The matrices in blocks, by the names that they have in the plain model."""
    return {
        plain_name(at): matrix.base
        for at, matrix in model.named_modules()
        if isinstance(matrix, HeldMatrix) and isinstance(matrix.base, Blocks)
    }


def blocks_of(model: nn.Module) -> list[Blocks]:
    return [module for module in model.modules() if isinstance(module, Blocks)]


def plain_name(name: str) -> str:
    """The name of a matrix or parameter without the parts that adapters and quantisation add."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "matrices"))


# One file -------------------------------------------------------------------------------------------------------------

FORMAT, QUANTISATION = "reducible quantized 1", "quantization"
"""Spelt as in the first files, so that these stay readable."""


def save_quantised(model: Model, family_name: str, quantisation: Quantisation, file: Path) -> None:
    """Writes the whole base into one safetensors file: codes, constants, and what is not quantised, without adapters.

    The metadata hold the quantisation, the model's family and configuration, and a SHA-256 of the tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, blocks in quantised(model).items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in blocks.named_parameters()}
    for name, tensor in model.state_dict().items():
        if ".matrices." not in f".{name}":
            tensors[plain_name(name)] = tensor
        elif name.endswith(".base"):  # held for an adapter, and not quantised
            tensors[plain_name(name).removesuffix(".base")] = tensor
    tensors = apart({name: tensor.cpu() for name, tensor in tensors.items() if "lora_" not in name})
    metadata = {
        "format": FORMAT,
        QUANTISATION: json.dumps(asdict(quantisation)),
        "family": family_name,
        "config": json.dumps(asdict(model.config)),
        "sha256": _digest(tensors),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(file), metadata=metadata)


def load_quantised(model: nn.Module, file: Path) -> None:
    """Fills a plain model of the same family and configuration in place, on any device, the meta device included.

    No matrix becomes dense, and none is quantised again. A model on the meta device moves to the CPU.

    Raises:
        ValueError: the file, which the line names, is damaged or of another model.
    """
    metadata, tensors = _read(file)
    _fill(model, metadata, tensors, file)


def quantised_model(file: Path) -> nn.Module:
    """The model that a file describes, on the CPU, in evaluation mode."""
    metadata, tensors = _read(file)
    kind = family(metadata["family"])
    with torch.device("meta"):
        model = kind.build(kind.config(**json.loads(metadata["config"])))
    _fill(model, metadata, tensors, file)
    return model.eval()


def _fill(model: nn.Module, metadata: dict[str, str], tensors: dict[str, Tensor], file: Path) -> None:
    quantisation = Quantisation(**json.loads(metadata[QUANTISATION]))
    device = next(model.parameters()).device
    tensors = tensors if device.type in ("cpu", "meta") else {name: t.to(device) for name, t in tensors.items()}
    plain = {name: parameter.shape for name, parameter in model.state_dict().items()}
    in_blocks = [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]
    rest = {name: tensor for name, tensor in tensors.items() if name in plain}
    strangers = set(plain) ^ (set(in_blocks) | set(rest))
    wrong = [name for name, tensor in rest.items() if tensor.shape != plain[name]]
    wrong += [
        name
        for name in set(in_blocks) & set(plain)
        if tensors[f"{name}.codes"].numel() != _codes(plain[name].numel(), quantisation)
    ]
    if strangers or wrong:
        raise ValueError(f"{file}: is of another model: {min([*strangers, *wrong])} does not fit this one")
    for name in in_blocks:
        at, _, parameter = name.rpartition(".")
        (matrix,) = hold(model.get_submodule(at), [parameter])
        parts = {part: tensors[f"{name}.{part}"] for part in names_of(quantisation)}
        matrix.replace(Blocks(matrix.shape, quantisation, parts))
    model.load_state_dict(rest, strict=False, assign=True)


def _codes(numbers: int, quantisation: Quantisation) -> int:
    return -(-numbers // 2) if quantisation.kind in FOUR_BITS else numbers


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
            # Copied, because safetensors maps the file itself, which may be replaced.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: holds no quantised base ({first_line(error)})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{file}: holds no quantised base, or one of another version")
    if metadata.get("sha256") != _digest(tensors):
        raise ValueError(f"{file}: was altered after it was saved: its numbers have another SHA-256")
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
