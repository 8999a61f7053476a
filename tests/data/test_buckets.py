"""Ragged examples in steps of equal units: once an epoch, a pure function of the step, with little padding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.batches import fixed
from reducible.data.buckets import Buckets
from reducible.data.errors import DataError


class Ragged:
    """Examples that are only their number, with a length and a size each."""

    split = "train"

    def __init__(self, lengths: np.ndarray, sequence: int, sizes: np.ndarray | None = None, name: str = "some") -> None:
        self.lengths, self.sequence, self.fingerprint = np.asarray(lengths), sequence, name
        self.sizes = self.lengths if sizes is None else np.asarray(sizes)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"index": indices}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(self.lengths[batch["index"]].sum())


def drawn(count: int, sequence: int, seed: int = 0) -> Ragged:
    """Lengths as sentences have them, with sources that differ from their targets by a fifth."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(2.5, 0.5, count).astype(int), 1, sequence)
    sources = np.clip(generator.normal(lengths, 0.2 * lengths).astype(int), 1, sequence)
    return Ragged(lengths, sequence, np.maximum(lengths, sources))


def step_of(buckets: Buckets, step: int) -> list[int]:
    return np.concatenate(buckets.micro_batches(step)).tolist()


def lap_of(buckets: Buckets, lap: int = 0) -> list[int]:
    first = lap * buckets.steps_per_lap
    return [index for step in range(first, first + buckets.steps_per_lap) for index in step_of(buckets, step)]


examples = st.builds(
    lambda lengths, extra: Ragged(np.array(lengths), 40, np.minimum(np.array(lengths) + extra, 40)),
    st.lists(st.integers(1, 40), min_size=1, max_size=300),
    st.integers(0, 10),
)


@given(ragged=examples, batch=st.integers(40, 900), micro=st.integers(1, 9), seed=st.integers(0, 9))
def test_a_lap_sees_every_example_equally_often(ragged: Ragged, batch: int, micro: int, seed: int) -> None:
    buckets = Buckets(ragged, batch, micro, seed)
    seen = np.bincount(lap_of(buckets, lap=seed), minlength=len(ragged))
    assert seen.min() == seen.max() >= 1
    # As many steps as the batch asks for, to 2 %.
    assert seen[0] * ragged.lengths.sum() / buckets.steps_per_lap == pytest.approx(batch, rel=0.021)


@given(ragged=examples, batch=st.integers(40, 900), micro=st.integers(1, 9))
def test_no_micro_batch_takes_more_room_than_allowed_and_no_step_is_empty(
    ragged: Ragged, batch: int, micro: int
) -> None:
    buckets = Buckets(ragged, batch, micro, 0)
    for step in range(buckets.steps_per_lap):
        pieces = buckets.micro_batches(step)
        assert all(len(piece) and len(piece) * ragged.sizes[piece].max() <= micro * 40 for piece in pieces)


def test_a_large_epoch_is_one_lap_whose_steps_have_equal_units() -> None:
    ragged = drawn(20_000, 64)
    buckets = Buckets(ragged, 4096, 64, 0)
    assert buckets.steps_per_lap == round(ragged.lengths.sum() / 4096)
    units = [ragged.lengths[step_of(buckets, step)].sum() for step in range(buckets.steps_per_lap)]
    assert max(abs(count - buckets.units_per_step) for count in units) <= 2 * 64  # an example at either end
    assert sorted(lap_of(buckets)) == list(range(20_000))


@given(ragged=examples, steps=st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_step_does_not_depend_on_the_steps_asked_before(ragged: Ragged, steps: list[int]) -> None:
    used = Buckets(ragged, 100, 3, 5)
    for step in steps:
        fresh = Buckets(ragged, 100, 3, 5)
        for a, b in zip(used.micro_batches(step), fresh.micro_batches(step), strict=True):
            assert np.array_equal(a, b)


def test_the_size_of_the_micro_batch_does_not_change_what_a_step_takes() -> None:
    ragged = drawn(3000, 64)
    orders = [lap_of(Buckets(ragged, 1000, micro, 3)) for micro in (1, 4, 100)]
    assert orders[0] == orders[1] == orders[2]


def test_epochs_and_seeds_and_data_have_orders_of_their_own() -> None:
    def steps(seed: int, name: str, lap: int) -> list[frozenset[int]]:
        source = drawn(5000, 64)
        buckets = Buckets(Ragged(source.lengths, 64, source.sizes, name), 1000, 4, seed)
        return [frozenset(step_of(buckets, lap * buckets.steps_per_lap + step)) for step in range(60)]

    orders = [steps(0, "some", 0), steps(0, "some", 1), steps(1, "some", 0), steps(0, "other", 0)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            shared = np.mean([len(a & b) / len(a) for a, b in zip(one, other, strict=True)])
            assert shared < 0.1


def test_steps_do_not_run_from_short_to_long() -> None:
    ragged = drawn(20_000, 64)
    buckets = Buckets(ragged, 1000, 16, 0)
    means = [ragged.lengths[step_of(buckets, step)].mean() for step in range(buckets.steps_per_lap)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15
    assert np.std(means) > 3  # but each has its own length: that is what saves padding


def padded(pieces: Sequence[np.ndarray], lengths: np.ndarray) -> float:
    """Positions computed over positions that hold something."""
    return sum(len(piece) * lengths[piece].max() for piece in pieces) / sum(lengths[piece].sum() for piece in pieces)


def all_pieces(buckets: Buckets) -> list[np.ndarray]:
    return [piece for step in range(buckets.steps_per_lap) for piece in buckets.micro_batches(step)]


def test_little_is_padding() -> None:
    """Where examples are taken at random, more than half of each batch is padding."""
    ragged = drawn(20_000, 100)
    shuffled = np.random.default_rng(0).permutation(len(ragged))
    assert padded(np.array_split(shuffled, 80), ragged.lengths) > 2
    assert padded(all_pieces(Buckets(ragged, 4096, 41, 0)), ragged.lengths) < 1.08
    alone = Ragged(ragged.lengths, 100)  # without sources, as sentences are
    assert padded(all_pieces(Buckets(alone, 4096, 41, 0)), alone.lengths) < 1.06


def test_targets_are_not_padded_where_sources_are_much_longer() -> None:
    """Sorted by the longer side alone, short targets of all lengths would share a batch."""
    generator = np.random.default_rng(0)
    targets, sources = generator.integers(2, 12, 30_000), generator.integers(12, 64, 30_000)
    pieces = all_pieces(Buckets(Ragged(targets, 64, sources), 2048, 32, 0))
    assert padded(pieces, targets) < 1.05 and padded(pieces, sources) < 1.15


def test_micro_batches_of_a_step_are_about_equal() -> None:
    """A greedy cut would leave a step of 1.1 rooms as one full pass and one tiny one."""
    ragged = drawn(20_000, 64)
    buckets = Buckets(ragged, 4096, 4096 // 64, 0)
    several = [pieces for step in range(50) if len(pieces := buckets.micro_batches(step)) > 1]
    assert several
    for pieces in several:
        room = [len(piece) * ragged.sizes[piece].max() for piece in pieces]
        assert min(room) > 0.6 * max(room)


def test_a_batch_larger_than_the_data_takes_several_epochs() -> None:
    buckets = Buckets(Ragged(np.full(10, 3), 8), 75, 4, 0)  # two and a half epochs of 30 units
    assert (buckets.steps_per_lap, buckets.units_per_step) == (2, 75)
    assert np.bincount(lap_of(buckets)).tolist() == [5] * 10


def test_fixed_ragged_examples_are_spread_sorted_and_bounded() -> None:
    ragged = drawn(1000, 64)
    pieces = fixed(ragged, 100, 4)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(0, 1000, 10))
    assert np.all(np.diff(ragged.sizes[np.concatenate(pieces)]) >= 0)
    assert all(len(piece) * ragged.sizes[piece].max() <= 4 * 64 for piece in pieces)


def test_what_cannot_train_says_what_to_do() -> None:
    with pytest.raises(DataError, match="train split is empty"):
        Buckets(Ragged(np.zeros(0, int), 8), 8, 1, 0)
    with pytest.raises(DataError, match="less than one sequence of 8"):
        Buckets(Ragged(np.ones(5, int), 8), 7, 1, 0)
    with pytest.raises(DataError, match="micro_batch"):
        Buckets(Ragged(np.ones(5, int), 8), 8, 0, 0)


def test_padding_of_real_pairs(datasets: Path) -> None:
    """Words of Multi30k, 4,096 target words a step: what the published recipe batches."""
    sources, targets = (
        np.array([len(line.split()) + 1 for line in (datasets / f"multi30k/tok/train.lc.norm.tok.{side}").open()])
        for side in ("en", "de")
    )
    pieces = all_pieces(Buckets(Ragged(targets, 64, np.maximum(sources, targets)), 4096, 128, 0))
    assert padded(pieces, targets) < 1.08 and padded(pieces, sources) < 1.2
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(targets)), len(pieces))
    assert padded(shuffled, targets) > 2
