"""What a training reads: its micro-batches by step, and the fixed validation examples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reducible.data.batches import Batches, Examples, StepBatches, fixed
from reducible.data.buckets import Buckets
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import family
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.train.train_spec import TrainSpec

SMALLEST_VALIDATION = 4096  # target units of a forward pass in validation


@dataclass(frozen=True)
class TrainingData:
    """Numbered training and validation examples. Arithmetic says which of them a step takes (contract 2)."""

    train: StepBatches
    held_out: StepBatches
    """For fetching and counting only: validation has no order of its own."""
    validation: list[np.ndarray]
    """Micro-batches of validation examples, the same for every run and world size."""
    unit_bytes: np.ndarray | None
    """(vocabulary,) bytes of text per target; None if targets are not tokens of text."""
    lengths: Lengths
    """What the cost of a target unit depends on."""

    def bytes_of(self, targets: np.ndarray) -> int:
        """The bytes that the targets stand for. A negative target means no target and counts 0."""
        assert self.unit_bytes is not None
        return int(self.unit_bytes[targets[targets >= 0]].sum())


def open_examples(data: Path, spec: TrainSpec) -> TrainingData:
    """Opens the dataset. Raises UserError or DataError if it or its splits cannot serve the family."""
    dataset = open_dataset(data)
    reads = family(spec.family).reads
    train, held_out = (
        dataset.examples(reads, split, spec.sequence, spec.mask_documents) for split in ("train", "validation")
    )
    train_batches = batches_of(train, spec.batch, spec.micro_batch, spec.seed)
    held_out_batches = batches_of(held_out, spec.sequence, spec.micro_batch, spec.seed)
    # As many target units as so many examples of full length have.
    count = round(spec.validation.examples * spec.sequence / lengths_of(held_out).target)
    return TrainingData(
        train_batches,
        held_out_batches,
        # Without gradients a larger micro-batch fits; tiny ones would cost more overhead than work.
        fixed(held_out, count, max(spec.micro_batch, SMALLEST_VALIDATION // spec.sequence)),
        dataset.unit_bytes(),
        lengths_of(train),
    )


def batches_of(examples: Examples, batch_units: int, micro_batch: int, seed: int) -> StepBatches:
    """Batches of examples: in order if all have one length, else in buckets of about equal length."""
    kind = Buckets if hasattr(examples, "lengths") else Batches
    return kind(examples, batch_units, micro_batch, seed)


def lengths_of(examples: Examples) -> Lengths:
    """The lengths of the examples: each one's own if they are ragged, else the one that all have."""
    if not hasattr(examples, "lengths"):
        return Lengths.fixed(examples.sequence)
    return Lengths.measured(examples.lengths, getattr(examples, "source_lengths", None))
