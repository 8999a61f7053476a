"""The order is a permutation, a fresh one for every key, and looks like chance."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.order import key_of, permute


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_index_is_hit_exactly_once(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, 2**40), key=st.integers(0, 2**64 - 1), data=st.data())
def test_an_image_does_not_depend_on_what_is_asked_with_it(n: int, key: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    together = permute(indices, n, key)
    assert together.min() >= 0 and together.max() < n
    assert together.tolist() == [int(permute(np.array(index), n, key)) for index in indices]


@pytest.mark.parametrize("n", [2, 3, 5, 17])
def test_every_place_is_equally_likely_for_every_index(n: int) -> None:
    keys = 1500
    images = np.stack([permute(np.arange(n), n, key_of("chance", 0, key)) for key in range(keys)])
    pvalues = [scipy.stats.chisquare(np.bincount(images[:, index], minlength=n)).pvalue for index in range(n)]
    assert min(pvalues) > 1e-4 / n


def test_all_orders_of_a_few_examples_occur() -> None:
    orders = [tuple(permute(np.arange(4), 4, key_of("orders", 1, key)).tolist()) for key in range(2400)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-5


def test_neighbours_do_not_stay_neighbours() -> None:
    n = 20_000
    images = permute(np.arange(n), n, key_of("neighbours", 0, 0))
    steps = np.abs(np.diff(images))
    # The mean distance of two random points of a line of length n is n / 3.
    assert abs(steps.mean() / (n / 3) - 1) < 0.03
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.03


def test_key_tells_fingerprint_seed_and_epoch_apart() -> None:
    keys = {key_of(f, s, e) for f in ("a", "b") for s in range(10) for e in range(10)}
    assert len(keys) == 200


def test_an_index_outside_is_refused() -> None:
    for index in (-1, 5):
        with pytest.raises(ValueError, match="outside"):
            permute(np.array([0, index]), 5, 1)
