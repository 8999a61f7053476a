"""The examples of a step are a pure function of fingerprint, seed and step; an epoch sees each example once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.batches import Batches, fixed
from reducible.data.errors import DataError


class Numbered:
    """Examples that are only their number."""

    split = "train"

    def __init__(self, count: int, sequence: int = 8, fingerprint: str = "numbers") -> None:
        self.count, self.sequence, self.fingerprint = count, sequence, fingerprint

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        targets = np.repeat(np.asarray(indices)[:, None], self.sequence, axis=1)
        return {"inputs": targets, "targets": targets}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(np.count_nonzero(batch["targets"] != -100))


def stream(batches: Batches, steps: int) -> list[int]:
    return [int(index) for step in range(steps) for micro in batches.micro_batches(step) for index in micro]


@given(count=st.integers(1, 9000), per_step=st.integers(1, 700), micro=st.integers(1, 50), seed=st.integers(0, 9))
def test_an_epoch_sees_every_example_once(count: int, per_step: int, micro: int, seed: int) -> None:
    batches = Batches(Numbered(count), per_step * 8, micro, seed)
    seen = stream(batches, -(-2 * count // per_step))
    assert sorted(seen[:count]) == sorted(seen[count : 2 * count]) == list(range(count))


def test_epochs_and_seeds_and_data_have_orders_of_their_own() -> None:
    def first_epochs(seed: int, fingerprint: str) -> list[list[int]]:
        seen = stream(Batches(Numbered(1000, fingerprint=fingerprint), 80, 4, seed), 200)
        return [seen[:1000], seen[1000:]]

    orders = first_epochs(0, "numbers") + first_epochs(1, "numbers") + first_epochs(0, "others")
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 15  # 1 is expected by chance


@given(count=st.integers(1, 5000), steps=st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_a_step_does_not_depend_on_the_steps_asked_before(count: int, steps: list[int]) -> None:
    used = Batches(Numbered(count), 11 * 8, 3, 5)
    for step in steps:
        fresh = Batches(Numbered(count), 11 * 8, 3, 5)
        for a, b in zip(used.micro_batches(step), fresh.micro_batches(step), strict=True):
            assert np.array_equal(a, b)


def test_the_size_of_the_micro_batch_does_not_change_the_order() -> None:
    orders = [stream(Batches(Numbered(777), 13 * 8, micro, 3), 100) for micro in (1, 4, 13, 100)]
    assert orders[0] == orders[1] == orders[2] == orders[3]


def test_only_the_last_micro_batch_is_smaller() -> None:
    assert [len(micro) for micro in Batches(Numbered(777), 13 * 8, 4, 3).micro_batches(0)] == [4, 4, 4, 1]


def test_units_and_steps() -> None:
    batches = Batches(Numbered(100), 50, 4, 0)  # 50 units are six sequences of eight and a rest
    assert (batches.examples_per_step, batches.units_per_step) == (6, 48)
    batch = batches.fetch(np.array([1, 2]))
    assert batches.units(batch) == 16
    assert batches.units({"targets": np.array([[1, -100, 0], [-100, -100, -100]])}) == 2


def test_fixed_examples_are_spread_and_always_the_same() -> None:
    chosen = fixed(Numbered(1000), 10, 4)
    assert [len(micro) for micro in chosen] == [4, 4, 2]
    assert np.concatenate(chosen).tolist() == list(range(0, 1000, 100))
    assert np.concatenate(fixed(Numbered(7), 100, 3)).tolist() == list(range(7))


def test_what_cannot_train_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"train split is empty.*paragraph.*data\.validation"):
        Batches(Numbered(0), 8, 1, 0)
    with pytest.raises(DataError, match="validation|train split is empty"):
        fixed(Numbered(0), 8, 1)
    with pytest.raises(DataError, match="less than one sequence of 8"):
        Batches(Numbered(5), 7, 1, 0)
    with pytest.raises(DataError, match="micro_batch"):
        Batches(Numbered(5), 8, 0, 0)
