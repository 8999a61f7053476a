"""Which examples each training step sees: the seam between data and the train step. No torch here."""

from typing import Protocol

import numpy as np

from reducible.data.errors import DataError
from reducible.data.order import key_of, permute

_BLOCK = 4096  # positions of the order computed at once


class Examples(Protocol):
    """What every kind of data offers: numbered examples of at most `sequence` target units each.

    Kinds whose examples differ in length also have `lengths` and `sizes` and are batched by data/buckets.py.
    """

    sequence: int
    split: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """Target units in the batch that count."""
        ...


class StepBatches(Protocol):
    """Which examples a step takes: `Batches` of equal examples, or `Buckets` of ragged ones."""

    units_per_step: int

    def micro_batches(self, step: int) -> list[np.ndarray]: ...

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...

    def units(self, batch: dict[str, np.ndarray]) -> int: ...


class Batches:
    """Steps over shuffled examples. Everything is a function of (fingerprint, seed, step): nothing to save."""

    def __init__(self, examples: Examples, batch_units: int, micro_batch: int, seed: int) -> None:
        """`batch_units` target units per step, whatever the world size; `micro_batch` sequences per forward pass."""
        check_batch(examples, batch_units, micro_batch)
        self.examples = examples
        self.examples_per_step = batch_units // examples.sequence
        self.units_per_step = self.examples_per_step * examples.sequence
        """Target units of a step; a step with the epoch's partial window has fewer."""
        self._micro_batch = micro_batch
        self._seed = seed
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Example indices of every micro-batch of the step, over all ranks; only the last may be smaller."""
        first = step * self.examples_per_step
        indices = self._order(first, first + self.examples_per_step)
        return [indices[at : at + self._micro_batch] for at in range(0, len(indices), self._micro_batch)]

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.examples.batch(indices)

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """Target units that count."""
        return self.examples.units(batch)

    def _order(self, first: int, last: int) -> np.ndarray:
        """The examples at positions first .. last-1 of the endless order: one permutation after another."""
        pieces = []
        while first < last:
            epoch, place = divmod(first, len(self.examples))
            block = self._block(epoch, place // _BLOCK)
            offset = place % _BLOCK
            pieces.append(block[offset : offset + last - first])
            first += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _block(self, epoch: int, number: int) -> np.ndarray:
        """Remembers two blocks: arithmetic for a few indices at a time would cost more than the batch itself."""
        if (epoch, number) not in self._blocks:
            if len(self._blocks) >= 2:
                self._blocks.pop(next(iter(self._blocks)))
            count = len(self.examples)
            places = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, count))
            key = key_of(self.examples.fingerprint, self._seed, epoch)
            self._blocks[epoch, number] = permute(places, count, key)
        return self._blocks[epoch, number]


def fixed(examples: Examples, count: int, micro_batch: int) -> list[np.ndarray]:
    """Micro-batches of `count` examples spread evenly over the split (all, if it has fewer): always the same.

    Ragged examples come sorted by size, so that little is padding.
    """
    _refuse_empty(examples)
    total = len(examples)
    count = min(count, total)
    indices = np.arange(count) * total // max(count, 1)
    sizes = getattr(examples, "sizes", None)
    if sizes is None:
        return [indices[at : at + micro_batch] for at in range(0, count, micro_batch)]
    order = np.argsort(sizes[indices], kind="stable")
    return cut_by_size(indices[order], sizes, micro_batch * examples.sequence)


def cut_by_size(indices: np.ndarray, sizes: np.ndarray, room: int) -> list[np.ndarray]:
    """Cuts the indices in order into pieces whose rows x largest size is at most `room`; no piece is empty."""
    pieces, start, largest = [], 0, 0
    for place, size in enumerate(sizes[indices].tolist()):
        largest = max(largest, size)
        if place > start and (place - start + 1) * largest > room:
            pieces.append(indices[start:place])
            start, largest = place, size
    return [*pieces, indices[start:]]


def check_batch(examples: Examples, batch_units: int, micro_batch: int) -> None:
    """Raises DataError if no step can be taken: no examples, or a batch or micro-batch that holds none."""
    _refuse_empty(examples)
    if batch_units < examples.sequence:
        raise DataError(f"train.batch: {batch_units} target units are less than one sequence of {examples.sequence}")
    if micro_batch < 1:
        raise DataError(f"train.micro_batch: {micro_batch} is not at least 1")


def _refuse_empty(examples: Examples) -> None:
    if len(examples) == 0:
        raise DataError(
            f"data: the {examples.split} split is empty; give more data or another validation share, cut text into "
            "more documents (data.documents: paragraph), or name a source for validation (data.validation)"
        )
