"""Bytes on each rank, and bytes that each rank sends, under DDP and FSDP2 as tasks/train/parallel.py uses them.

Ring collectives: an all-gather or a reduce-scatter of a tensor of S bytes makes each of R ranks send (R - 1) / R x S,
an all-reduce twice that (Rajbhandari et al. 2020, section 7). Weights that are kept, moments and reduced gradients are
fp32; `compute` is the size of a number in matrix products.
"""

from models.rehearsal import Rehearsal, Units

FLOAT = 4
MOMENTS = 2


def ddp_sent_bytes(trained: int, ranks: int) -> float:
    """A step: one all-reduce of all gradients, with the last micro-batch, however many there are."""
    return 2 * FLOAT * trained * (ranks - 1) / ranks


def fsdp_sent_bytes(units: Units, ranks: int, compute: int, micro_batches: int) -> float:
    """A step of `micro_batches` on each rank.

    Each gathers every block in forward and again in backward, and once what is outside of blocks, which stays; and
    reduces its gradients at once, so that no rank ever holds more than its shard of them.
    """
    gathered = compute * (2 * sum(units.blocks) + units.root)
    reduced = FLOAT * (sum(units.blocks_trained) + units.root_trained)
    return (gathered + reduced) * micro_batches * (ranks - 1) / ranks


def fsdp_peak_bytes(rehearsal: Rehearsal, ranks: int, compute: int, accumulates: bool) -> float:
    """The most that one rank holds. `rehearsal`: of the whole model, computing in that size of number.

    A shard of weights and moments is always there. On top comes the largest of what is there at four moments:
    outside: all outside of blocks is gathered (into a buffer, then copied out) while the first block follows.
    held: most activations, what is outside of blocks, and the block that backward gathers first.
    block: backward of a block, its gradients in `compute` and as fp32 on their way to the other ranks, while the next
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
    around = compute * (units.root + units.table)
    within = compute * (2 * block + trained) + FLOAT * trained
    moments = (
        before + compute * 2 * (units.root + block),
        before + rehearsal.activations + compute * (units.root + block),
        before + rehearsal.held + around + within,
        max(before, shard * (count - 2) / count) + rehearsal.held * 2 / count + around + within,
        (compute + FLOAT) * units.root_trained + shard,
    )
    return (FLOAT * rehearsal.parameters + MOMENTS * FLOAT * rehearsal.trained) / ranks + max(moments)
