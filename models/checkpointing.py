"""Activation checkpointing: hold only what enters a block, or a stretch of time, and compute the inside again.

Recurrent families cut time instead of depth: of T steps, chunks of about sqrt(T), and between two chunks only the
state is kept (Chen et al. 2016; Gruslys et al. 2016 for recurrences). Memory then grows with sqrt(T).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint every block of `model.blocks()` in full; call it before sharding and compiling.

    A model with an attribute `rebuilds` hands that to `over_time` instead. Names of parameters stay as they are.
    Dropout draws the same numbers again; without dropout nothing of the random state is kept.
    """
    if hasattr(model, "rebuilds"):
        model.rebuilds = True  # type: ignore[assignment]
        return
    for block in model.blocks():  # type: ignore[operator]
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=bool(model.stochastic))
        block.forward = again


def chunk_length(steps: int) -> int:
    """The root of the steps, rounded up: as many steps in a chunk as there are chunks."""
    return math.isqrt(max(0, steps - 1)) + 1


def over_time(
    advance: Callable[..., tuple[Output, Any]],
    sequences: Sequence[Tensor],
    state: Any,
    rebuild: bool,
    axis: int = 0,
) -> tuple[list[Output], Any]:
    """`advance(*stretches, state) -> (output, state)` over sequences whose time lies on `axis`: (outputs, last state).

    Without `rebuild` that is one call with everything. With it, chunks of `chunk_length` steps follow each other, and
    backward computes each again from the state it began with. `advance` must draw no random numbers: what chance it
    needs is drawn before, for all steps, or a chunk could not be told from the whole.
    """
    rebuild = rebuild and torch.is_grad_enabled()
    length = sequences[0].shape[axis]
    outputs = []
    for stretch in zip(*(s.split(chunk_length(length) if rebuild else length, axis) for s in sequences), strict=True):
        if rebuild:
            output, state = checkpoint(advance, *stretch, state, use_reentrant=False, preserve_rng_state=False)
        else:
            output, state = advance(*stretch, state)
        outputs.append(output)
    return outputs, state
