"""Batches of examples that differ in length: about the same target units a step, little padding, no state."""

from typing import Protocol, cast

import numpy as np

from reducible.data.batches import Examples, check_batch, cut_by_size
from reducible.data.order import key_of, permute

_POOL_STEPS = 32  # steps whose examples are sorted by size together
_LIKE = 1.15  # ratio of target lengths that count as alike
_TOLERANCE = 0.02  # relative difference allowed between the average step and the batch that was asked for


class RaggedExamples(Examples, Protocol):
    """Examples of at most `sequence` target units, whose sizes are known without reading them."""

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) target units of each."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """(examples,) length of the row that each takes in a batch before padding, such as max(source, target)."""
        ...


class Buckets:
    """Steps over shuffled examples of like size. Everything is a function of (fingerprint, seed, step).

    A lap is one epoch, and every lap has the same number of steps:

    1. permute the examples of the epoch (data/order.py);
    2. inside pools of 32 steps' worth of units, sort into groups of like target length and these by size;
    3. cut where the cumulative units pass equal shares of the lap: one piece a step;
    4. permute the steps.

    In a small epoch a whole number of steps can miss `batch_units` by more than 2 %. A lap then takes several epochs,
    the fewest that bring it within 2 %. Pools and step 4 stay within an epoch.
    """

    def __init__(self, examples: Examples, batch_units: int, micro_batch: int, seed: int) -> None:
        """`batch_units` target units per step, whatever the world size; room for `micro_batch` full sequences per
        forward pass, which holds more examples if they are shorter. The examples are RaggedExamples."""
        check_batch(examples, batch_units, micro_batch)
        self.examples = examples
        ragged = cast(RaggedExamples, examples)
        self._lengths = np.asarray(ragged.lengths, np.int64)
        self._sizes = np.asarray(ragged.sizes, np.int64)
        self._groups = np.floor(np.log(self._lengths) / np.log(_LIKE)).astype(np.int64)
        self._room = micro_batch * examples.sequence
        self._seed = seed
        epoch_units = int(self._lengths.sum())
        self._epochs, self.steps_per_lap = _lap(epoch_units, batch_units)
        self.units_per_step = round(self._epochs * epoch_units / self.steps_per_lap)
        """Target units of a step on average; single steps differ by at most one example at either end."""
        self._current: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Example indices of every micro-batch of the step, over all ranks: rows x largest size is at most
        micro_batch x sequence, and about the same for all of them."""
        lap, place = divmod(step, self.steps_per_lap)
        order, borders, turn = self._lap_order(lap)
        piece = int(turn[place])
        return _even(order[borders[piece] : borders[piece + 1]], self._sizes, self._room)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.examples.batch(indices)

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """Target units that count."""
        return self.examples.units(batch)

    def _lap_order(self, lap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(examples in order, borders of the pieces, which piece each step takes); remembers one lap."""
        if self._current is None or self._current[0] != lap:
            self._current = (lap, *self._arranged(lap))
        return self._current[1:]

    def _arranged(self, lap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count, pieces = len(self._lengths), self.steps_per_lap
        fingerprint = self.examples.fingerprint
        epochs = range(lap * self._epochs, (lap + 1) * self._epochs)
        order = np.concatenate(
            [permute(np.arange(count), count, key_of(fingerprint, self._seed, epoch)) for epoch in epochs]
        )
        before = np.cumsum(self._lengths[order]) - self._lengths[order]
        pool = np.arange(len(order)) // count if self._epochs > 1 else before // (_POOL_STEPS * self.units_per_step)
        # Groups of like length, each sorted by size. Pools and groups alternate between ascending and descending order,
        # so that neighbours at a border are alike. The sort is stable: equals stay in the order of the permutation.
        group = self._groups[order] * np.where(pool % 2, -1, 1)
        order = order[np.lexsort((self._sizes[order] * np.where(group % 2, -1, 1), group, pool))]
        seen = np.cumsum(self._lengths[order])
        middle = seen - self._lengths[order] / 2
        borders = np.searchsorted(middle, int(seen[-1]) * np.arange(pieces + 1) / pieces)
        # Every step gets at least one example, even if single examples are as long as a step.
        borders = np.maximum.accumulate(borders - np.arange(pieces + 1)) + np.arange(pieces + 1)
        borders = np.minimum(borders, len(order) - np.arange(pieces, -1, -1))
        turn = np.concatenate(
            [
                steps[permute(np.arange(len(steps)), len(steps), key_of(f"{fingerprint}\0steps", self._seed, epoch))]
                for epoch, steps in zip(epochs, np.array_split(np.arange(pieces), len(epochs)), strict=True)
                if len(steps)
            ]
        )
        return order, borders, turn


def _lap(epoch_units: int, batch_units: int) -> tuple[int, int]:
    """(epochs, steps) of a lap: the fewest epochs whose units make a whole number of steps within the tolerance."""
    epochs = 1
    while True:
        steps = round(epochs * epoch_units / batch_units)
        if steps and abs(steps * batch_units / (epochs * epoch_units) - 1) <= _TOLERANCE:
            return epochs, steps
        epochs += 1


def _even(indices: np.ndarray, sizes: np.ndarray, room: int) -> list[np.ndarray]:
    """Cuts into as few pieces as `room` allows, then evens them out: the smallest room that needs no more pieces."""
    pieces = cut_by_size(indices, sizes, room)
    low, high = 0, room
    while len(pieces) > 1 and high - low > max(1, room // 64):
        middle = (low + high) // 2
        tried = cut_by_size(indices, sizes, middle)
        if len(tried) > len(pieces):
            low = middle
        else:
            pieces, high = tried, middle
    return pieces
