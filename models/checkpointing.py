"""Activation checkpointing: hold only what enters a block and compute the inside again in backward."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint every block of `model.blocks()` in full; call it before sharding and compiling.

    Names of parameters stay as they are. Dropout draws the same numbers again; without dropout nothing of the random
    state is kept.
    """
    for block in model.blocks():  # type: ignore[operator]
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=bool(model.stochastic))
        block.forward = again
