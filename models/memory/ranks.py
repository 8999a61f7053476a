"""Bytes on each rank, and bytes that each rank sends, under DDP and FSDP2 as tasks/train/parallel.py uses them.

Ring collectives: an all-gather or a reduce-scatter of a tensor of S bytes makes each of R ranks send (R - 1) / R x S,
an all-reduce twice that (Rajbhandari et al. 2020, section 7). Moments and reduced gradients are fp32, as are weights
that are kept, but those of a base in few bits.
"""

from reducible.models.memory.rehearsed_step import Rehearsal, Units

FLOAT = 4


def ddp_sent_bytes(trained: int, ranks: int) -> float:
    """A step: one all-reduce of all gradients, with the last micro-batch, however many there are."""
    return 2 * FLOAT * trained * (ranks - 1) / ranks


def fsdp_sent_bytes(units: Units, ranks: int, micro_batches: int) -> float:
    """A step of `micro_batches` on each rank.

    Each gathers every block in forward and again in backward, and once what is outside of blocks, which stays; and
    reduces its gradients at once, so that no rank ever holds more than its shard of them.
    """
    gathered = 2 * sum(units.blocks) + units.root
    reduced = FLOAT * (sum(units.blocks_trained) + units.root_trained)
    return (gathered + reduced) * micro_batches * (ranks - 1) / ranks


def fsdp_peak_bytes(rehearsal: Rehearsal, ranks: int, gathered: int, accumulates: bool, optimizer: int = 8) -> float:
    """The most that one rank holds. `gathered`: bytes of a number as it is gathered, and as its gradient
    comes. `rehearsal`: of the whole model with its weights in such numbers. `optimizer`: bytes that are held
    for each trained parameter.

    A shard of weights and moments is always there. On top comes the largest of what is there at five moments:
    outside: all outside of blocks is gathered (into a buffer, then copied out) while the first block follows.
    last: the last block is gathered in forward and copied out, the buffer of the one before it not yet gone.
    held: most activations, what is outside of blocks, and the block that backward gathers first.
    block: backward of a block, its gradients as they come and as fp32 on their way to the other ranks, while the next
    block is gathered; at first with all that forward left, at last with the gradients that have been reduced.
    table: gradients of what is outside of blocks on their way.
    While micro-batches accumulate, a shard of the gradients of those before is there as well.
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
