"""Bytes on each rank, and bytes that each rank sends, under DDP and FSDP2 as tasks/train/parallel.py uses them.

Ring collectives: in an all-gather or reduce-scatter of a tensor of S bytes each of R ranks sends (R - 1) / R x S bytes,
in an all-reduce twice as many (Rajbhandari et al. 2020, section 7). Moments and reduced gradients are fp32. So are the
stored weights, except those of a base in few bits.
"""

from reducible.models.memory.rehearsed_step import Rehearsal, Units

FLOAT = 4


def ddp_sent_bytes(trained: int, ranks: int) -> float:
    """The bytes of a step: one all-reduce of all gradients, with the last of its micro-batches."""
    return 2 * FLOAT * trained * (ranks - 1) / ranks


def fsdp_sent_bytes(units: Units, ranks: int, micro_batches: int) -> float:
    """The bytes of a step with `micro_batches` on each rank.

    Each micro-batch gathers every block in forward and again in backward. It gathers the parameters outside of blocks
    once, and they stay. It reduces its gradients at once, so no rank holds more than its shard of them.
    """
    gathered = 2 * sum(units.blocks) + units.root
    reduced = FLOAT * (sum(units.blocks_trained) + units.root_trained)
    return (gathered + reduced) * micro_batches * (ranks - 1) / ranks


def fsdp_peak_bytes(rehearsal: Rehearsal, ranks: int, gathered: int, accumulates: bool, optimizer: int = 8) -> float:
    """The most that one rank holds. `gathered`: bytes of a number as it is gathered, and as its gradient
    comes. `rehearsal`: of the whole model with its weights in such numbers. `optimizer`: bytes that are held
    for each trained parameter.

    A shard of weights and moments is always held. The largest of these five is added:
    outside: the parameters outside of blocks are gathered (into a buffer, then copied out), and the first block too.
    last: the last block is gathered in forward and copied out, and the buffer of the one before is not yet freed.
    held: the activations, the parameters outside of blocks, and the block that backward gathers first.
    block: backward of a block, with its gradients as computed and as fp32 during reduction, while the next block is
    gathered. At first all that forward left is held as well, at last the gradients that have been reduced.
    table: the gradients of the parameters outside of blocks during reduction.
    While micro-batches accumulate, a shard of the gradients of the earlier ones is held as well.
    """
    units = rehearsal.units
    largest = max(zip(units.blocks, units.blocks_trained, strict=True), default=(0, 0))
    block, trained = largest
    count = max(1, len(units.blocks))
    shard = FLOAT * rehearsal.trained / ranks
    before = shard if accumulates else 0.0
    around = units.root + gathered * units.table
    within = 2 * block + (gathered + FLOAT) * trained
    moments = (
        before + 2 * (units.root + block),
        before + rehearsal.held * (count - 1) / count + units.root + 3 * block,
        before + rehearsal.activations + units.root + block,
        before + rehearsal.held + around + within,
        max(before, shard * (count - 2) / count) + rehearsal.held * 2 / count + around + within,
        (gathered + FLOAT) * units.root_trained + shard,
    )
    stored = FLOAT / gathered * units.gathered
    return (stored + optimizer * rehearsal.trained) / ranks + max(moments)
