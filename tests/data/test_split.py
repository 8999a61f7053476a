"""A document's split is decided by its content and by nothing else."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.split import content_key, is_validation


def test_the_fraction_is_met() -> None:
    keys = [content_key(f"document {number}".encode()) for number in range(20_000)]
    for fraction in (0.0, 0.01, 0.05, 0.5, 1.0):
        share = np.mean([is_validation(key, fraction) for key in keys])
        assert abs(share - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / len(keys))


@given(st.binary(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_keeps_what_was_held_out(data: bytes, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert is_validation(content_key(data), small) <= is_validation(content_key(data), large)


def test_the_key_is_the_head_of_sha256() -> None:
    assert f"{content_key(b'abc'):016x}" == hashlib.sha256(b"abc").hexdigest()[:16]
