"""The order of examples as arithmetic: a permutation of 0 .. n-1 without a table."""

import hashlib

import numpy as np

_ROUNDS = 8


def key_of(fingerprint: str, seed: int, epoch: int) -> int:
    """The key of one epoch of these data under this seed."""
    digest = hashlib.sha256(f"order\0{fingerprint}\0{seed}\0{epoch}".encode()).digest()
    return int.from_bytes(digest[:8])


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where each index of 0 .. n-1 goes under the permutation that `key` names.

    A Feistel network permutes the next power of two (Luby and Rackoff 1988: each round is invertible whatever
    the round function is); an image outside 0 .. n-1 is permuted again until it falls inside (cycle walking,
    Black and Rogaway 2002), less than twice on average.
    """
    index = np.asarray(index, np.int64)
    if n < 1 or index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"index outside 0 .. {n - 1}")
    if n == 1:
        return index.copy()
    bits = int(n - 1).bit_length()
    round_keys = _mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    result = _feistel(index.astype(np.uint64).reshape(-1), bits, round_keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], bits, round_keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64).reshape(index.shape)


def _feistel(value: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    """The halves may differ in width and change places every round, so any number of bits works."""
    low_bits = bits // 2
    high_bits = bits - low_bits
    for round_key in round_keys:
        low_mask = np.uint64((1 << low_bits) - 1)
        high_mask = np.uint64((1 << high_bits) - 1)
        low, high = value & low_mask, value >> np.uint64(low_bits)
        high = (high ^ _mix(low ^ round_key)) & high_mask
        value = (low << np.uint64(high_bits)) | high
        low_bits, high_bits = high_bits, low_bits
    return value


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the input moves every bit of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
