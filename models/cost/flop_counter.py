"""FLOPs by counting: what a computation really multiplies, to hold the formulas of models/cost/ledger.py against.

torch's FlopCounterMode counts operators that it has a formula for and passes over all others in silence: on a CPU
nn.LSTM and fused attention are nothing to it, on a GPU cuDNN's recurrences. Here those have formulas, and an operator
that multiplies matrices without one is an error with the operator's name.

The path of a recurrence in torch 2.13:
- CPU, nn.LSTM in fp32, bf16 or fp16: one `mkldnn_rnn_layer` per layer and direction.
- CPU, nn.LSTM in fp64, with projections, on a PackedSequence or with mkldnn switched off, and nn.GRU and nn.RNN always:
  a C++ loop over time of `addmm` and pointwise operators, one `addmm` or `mm` for the inputs of all steps together.
- GPU: one `_cudnn_rnn` for all layers, directions and steps; without cuDNN `addmm` and `_thnn_fused_*_cell`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from reducible.models.layers.output_loss import CHUNKED

aten = torch.ops.aten


class UncountedOperator(RuntimeError):
    """An operator that multiplies matrices and has no formula: counting nothing for it would be wrong."""


def count_flops(run: Callable[[], Any], formulas: Mapping[Any, Callable[..., int]] | None = None) -> int:
    """FLOPs of everything that `run` computes, backward included if it calls it (conventions: models/cost/ledger.py).

    `formulas`: further operators as in FlopCounterMode's custom_mapping, `{torch.ops.aten.x: shapes -> FLOPs}`.

    Raises:
        UncountedOperator: naming the operator, where `run` multiplies matrices in a way that has no formula.
    """
    with FlopCounter(formulas) as counter:
        run()
    return counter.get_total_flops()


class FlopCounter(FlopCounterMode):
    """FlopCounterMode that knows the fused recurrences and CPU attention, and refuses what it does not know."""

    def __init__(self, formulas: Mapping[Any, Callable[..., int]] | None = None) -> None:
        super().__init__(display=False, custom_mapping={**FORMULAS, **(formulas or {})})
        self.mod_tracker = _Everything()  # type: ignore[assignment]

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        # Called once per operator that decomposes no further.
        if func_packet not in self.flop_registry and multiplies(func_packet):
            raise UncountedOperator(
                f"{func_packet}: multiplies matrices and has no formula; add one to cost/flop_counter.py, or pass it "
                "as `formulas`"
            )
        return super()._count_flops(func_packet, out, args, kwargs)


class WholeOperators(TorchDispatchMode):
    """Counts as FlopCounter does and takes no operator apart, so that bytes counted at the same time are those of the
    operators that really run. torch's mode runs what an operator decomposes into."""

    def __init__(self, formulas: Mapping[Any, Callable[..., int]] | None = None) -> None:
        super().__init__()
        self._counter = FlopCounter(formulas)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, out)
        return out

    def note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Counts an operator that another mode has run, where this one is inactive."""
        self._counter._count_flops(func._overloadpacket, out, args, kwargs)

    @property
    def total(self) -> int:
        return self._counter.get_total_flops()


class _Everything:
    """In place of torch's ModuleTracker, which tells modules apart by hooks: those keep alive what activation
    checkpointing lets go, and bytes that are counted at the same time would be wrong."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@cache
def multiplies(operator: Any) -> bool:
    """Whether an operator's name speaks of matrix products, factorisations, convolutions, transforms or recurrences.

    Operators of other libraries and of higher order (scans, compiled kernels) count as if it did:
    their names promise nothing.
    """
    library, _, name = str(operator).rpartition(".")
    if library not in ("aten", "prim"):
        return True
    return bool(_PRODUCT.search(name)) and not _NO_PRODUCT.search(name)


_PRODUCT = re.compile(
    r"mm(_|$)|(^|_)(mv|addmv|dot|vdot|vecdot|qr|lu|svd|inverse|pinverse|lstsq)(_|$)|matmul|einsum|tensordot"
    r"|linear|conv|attention|rnn|lstm|gru|cholesky|solve|linalg|cdist|fft|transformer|matrix_(exp|power)"
    r"|orgqr|ormqr|geqrf|kron"
)
_NO_PRODUCT = re.compile(
    r"^_thnn_(fused|differentiable)_|linalg_(vector_norm|_powsum|cross|diagonal|check_errors)|resolve_(conj|neg)"
    r"|upsample|cufft_|fft(freq|shift)|ifftshift|rnn_flatten_weight|^_convert_|lu_unpack|slice_inverse"
)
"""Names that only look so: pointwise kernels of a cell, norms, interpolation, bookkeeping."""


# Formulas: FlopCounterMode hands over shapes in place of tensors ------------------------------------------------------


def _attention_for_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_for_cpu_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _mkldnn_layer(input_TBX: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(input_TBX[:2]) * (math.prod(w_input) + math.prod(w_hidden))


def _mkldnn_layer_backward(input_TBX: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    """Towards what went in and towards the weights; the kernel always computes all of it."""
    return 2 * _mkldnn_layer(input_TBX, w_input, w_hidden)


def _cudnn_rnn(input_: Any, weight: Sequence[Any], *_: Any, **__: Any) -> int:
    """Input (T, B, X), or (tokens, X) of a packed sequence: each token meets every matrix once."""
    return 2 * math.prod(input_[:-1]) * sum(math.prod(shape) for shape in weight if len(shape) == 2)


def _cudnn_rnn_backward(input_: Any, weight: Sequence[Any], *arguments: Any, **keywords: Any) -> int:
    """Towards what went in, always in full, and towards the weights if the last argument, output_mask, asks for it."""
    to_weights = (keywords["output_mask"] if "output_mask" in keywords else arguments[-1])[3]
    return (2 if to_weights else 1) * _cudnn_rnn(input_, weight)


def _mv(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(_: Any, matrix: Any, vector: Any, *__: Any, **___: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(vector: Any, other: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(vector)


def _chunked_output_layer(input_NX: Any, weight_VX: Any, *arguments: Any, **_: Any) -> int:
    """models/layers/output_loss.py: the logits, and with them the gradients that the last arguments but one ask for."""
    wanted = sum(arguments[-3:-1])
    return 2 * math.prod(input_NX) * weight_VX[0] * (1 + wanted)


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_for_cpu_backward,
    aten.mkldnn_rnn_layer: _mkldnn_layer,
    aten.mkldnn_rnn_layer_backward: _mkldnn_layer_backward,
    aten._cudnn_rnn: _cudnn_rnn,
    aten._cudnn_rnn_backward: _cudnn_rnn_backward,
    aten.mv: _mv,
    aten.addmv: _addmv,
    aten.dot: _dot,
}
"""Operators that the families use and torch's registry lacks."""
if CHUNKED:
    # Importing it registers the operator.
    from torch.nn.modules import linear_cross_entropy  # noqa: F401

    FORMULAS[torch.ops.torch_nn._linear_cross_entropy_batch_chunked] = _chunked_output_layer
