"""What a training reads: its micro-batches by step, and the fixed validation examples. A new kind of data adds here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batches import Batches, fixed
from tasks.dataset import open_dataset
from tasks.train.spec import TrainSpec

SMALLEST_VALIDATION = 4096  # target units of a forward pass in validation


@dataclass(frozen=True)
class Examples:
    """Training and validation examples, numbered; which a step takes is arithmetic (contract 2)."""

    train: Batches
    held_out: Batches
    """Only for fetching and counting: validation has no order of its own."""
    validation: list[np.ndarray]
    """Micro-batches of validation examples, the same for every run and world size."""
    unit_bytes: np.ndarray | None
    """(vocabulary,) bytes of text per target, where targets are tokens of text."""

    def bytes_of(self, targets: np.ndarray) -> int:
        """Bytes that the targets stand for; no target (negative) is none."""
        assert self.unit_bytes is not None
        return int(self.unit_bytes[targets[targets >= 0]].sum())


def open_examples(data: Path, spec: TrainSpec) -> Examples:
    """Raises UserError or DataError where the folder or its splits cannot serve."""
    dataset = open_dataset(data)
    train, held_out = (
        dataset.sequences(split, spec.sequence, spec.mask_documents) for split in ("train", "validation")
    )
    return Examples(
        Batches(train, spec.batch, spec.micro_batch, spec.seed),
        Batches(held_out, spec.sequence, spec.micro_batch, spec.seed),
        # Without gradients a larger micro-batch fits, and tiny ones would cost more than they compute.
        fixed(held_out, spec.validation.examples, max(spec.micro_batch, SMALLEST_VALIDATION // spec.sequence)),
        dataset.token_bytes(),
    )
