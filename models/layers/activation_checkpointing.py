"""Activation checkpointing: hold less between forward and backward, and compute the rest again in backward.

    full        Of every block only what enters it is held (Chen et al. 2016). Blocks are rebuilt one at a time.
    selective   The results of matrix products, attention and fused recurrences are held as well: they take most of
                the time, and what lies between them (norms, activations, rotations, dropout) most of the memory.
    sqrt-time   A recurrence is cut into chunks of about sqrt(T) steps, and between two chunks only the state is held
                (Chen et al. 2016; Gruslys et al. 2016 for recurrences). Memory then grows with sqrt(T).

Chance is drawn again as it was. With full and selective the gradient is that of `none` to the bit; with sqrt-time the
sums over time run chunk by chunk, so that it differs in rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from reducible.models.contract import Family, Model, Part
from reducible.models.step_settings import Checkpointing

Output = TypeVar("Output")


class CutsTime:
    """Mixed into a module that cuts its own time into chunks (`over_time`) under checkpointing: sqrt-time."""

    rebuilds: bool = False
    """Whether it does so now; set_checkpointing decides."""


MODES: tuple[Checkpointing, ...] = get_args(Checkpointing)

aten = torch.ops.aten
SAVE: set[Any] = {
    aten.mm.default,
    aten.addmm.default,  # what nn.Linear with a bias comes to
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten.mkldnn_rnn_layer.default,
    aten._cudnn_rnn.default,
    aten._fft_r2c.default,
    aten._fft_c2r.default,
    aten._fft_c2c.default,
}
"""The operators whose results selective checkpointing holds; add to it what a new family spends its time in."""


def held(_: Any, operator: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    """The policy of selective checkpointing.

    A product of two parameters is no activation but a weight, put together from the factors of an adapter: to hold it
    would be to hold a dense matrix for each layer.
    """
    weight = all(isinstance(factor, nn.Parameter) for factor in given[-2:])
    hold = operator in SAVE and not weight
    return CheckpointPolicy.MUST_SAVE if hold else CheckpointPolicy.PREFER_RECOMPUTE


def set_checkpointing(model: Model, mode: str) -> None:
    """Make the model checkpoint its activations. Call it after adapters are put in, before sharding and compiling.

    Names of parameters stay as they are. Does nothing where `saves_nothing` has a reason.

    Raises:
        ValueError: for a mode that there is not.
    """
    if mode not in MODES:
        raise ValueError(f"checkpointing: {mode!r} must be one of {', '.join(MODES)}")
    if mode == "sqrt-time":
        for recurrence in recurrences(model):
            if isinstance(recurrence, CutsTime):
                recurrence.rebuilds = True
            else:
                axis = 1 if _innermost(recurrence).batch_first else 0
                recurrence.forward = partial(_in_chunks, recurrence.forward, axis)
        return
    # A model without chance needs no state of the random generators kept.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=model.stochastic)
    if mode == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, held))
    for module, method in parts(model, mode):
        setattr(module, method, partial(again, getattr(module, method)))


def parts(model: Model, mode: str) -> list[Part]:
    """What full and selective checkpointing rebuild; for selective the family says it."""
    if mode == "full":
        blocks = model.blocks()
        return [] if any(_is_all_of(model, block) for block in blocks) else [(block, "forward") for block in blocks]
    if mode == "selective":
        chosen = model.selective_parts()
        for part, _ in chosen:
            # Where torch has no fused kernel it writes over the results of products, and over what would be held of
            # them: nn.GRU on a CPU would get a wrong gradient without a word.
            inside = next((each for each in part.modules() if isinstance(each, nn.RNNBase)), None)
            if inside is not None:
                raise ValueError(
                    f"selective_parts: a {type(part).__name__} holds a recurrence ({type(inside).__name__}), which "
                    "cannot be rebuilt selectively; name parts without one"
                )
        return chosen
    return []


def recurrences(module: nn.Module) -> Iterator[nn.Module]:
    """What sqrt-time cuts: modules that cut their time themselves, and other layers of nn.LSTM.

    Not torch's other cells: their states are nearly all that they hold, and states are handed on.
    """
    if isinstance(module, CutsTime) or isinstance(_innermost(module), nn.LSTM):
        yield module
        return
    for child in module.children():
        yield from recurrences(child)


def saves_nothing(family: Family, config: Any, mode: str) -> str | None:
    """Why a mode saves nothing for models of that family and configuration; None where it does."""
    if mode == "none":
        return None
    with torch.device("meta"):
        model = family.build(config)
    if mode == "sqrt-time":
        if not any(recurrences(model)):
            return f"a {family.name} of this kind has no recurrence that holds more than its states"
    elif not parts(model, mode):
        if mode == "full":
            return f"a {family.name} of this kind has no blocks to rebuild one after another"
        return f"a {family.name} of this kind holds little besides what selective keeps: products and recurrences"
    return None


def _is_all_of(model: nn.Module, block: nn.Module) -> bool:
    """While such a block is rebuilt, nearly all is in memory that would have been held without checkpointing."""
    return len(list(block.parameters())) == len(list(model.parameters()))


def _innermost(module: nn.Module) -> Any:
    """The layer inside an adapter. The adapter is what has to be called: only it knows the weights."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[operator]


def chunk_length(steps: int) -> int:
    """The root of the steps, rounded up: as many steps in a chunk as there are chunks."""
    return math.isqrt(max(0, steps - 1)) + 1


def over_time(
    advance: Callable[..., tuple[Output, Any]],
    sequences: Sequence[Tensor],
    state: Any,
    rebuild: bool,
    axis: int = 0,
    draws: bool = False,
) -> tuple[list[Output], Any]:
    """`advance(*stretches, state) -> (output, state)` over sequences whose time lies on `axis`: (outputs, last state).

    Without `rebuild` that is one call with everything. With it, chunks of `chunk_length` steps follow each other, and
    backward computes each again from the state it began with. An `advance` that draws random numbers (`draws`) must
    draw them step by step, or a chunk could not be told from the whole.
    """
    rebuild = rebuild and torch.is_grad_enabled()
    length = sequences[0].shape[axis]
    outputs = []
    for stretch in zip(*(s.split(chunk_length(length) if rebuild else length, axis) for s in sequences), strict=True):
        if rebuild:
            output, state = checkpoint(advance, *stretch, state, use_reentrant=False, preserve_rng_state=draws)
        else:
            output, state = advance(*stretch, state)
        outputs.append(output)
    return outputs, state


def joined(chunks: Sequence[Tensor], axis: int) -> Tensor:
    """What `over_time` gave, as one tensor."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=axis)


def _in_chunks(forward: Callable[..., Any], axis: int, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    outputs, state = over_time(forward, (x,), state, True, axis)
    if len(outputs) > 1:
        # With time outermost in memory, as the kernels write it: dropout draws in the order of memory.
        outputs = [torch.cat([output.transpose(0, axis) for output in outputs]).transpose(0, axis)]
    return outputs[0], state
