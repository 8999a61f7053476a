"""Random numbers that are a function of (seed, stream, counter) alone, and their spelling as symbols of text."""

import hashlib

import numpy as np

ALPHABET = "etaoinshrdlcumwfgypbvkjxqzETAOINSHRDLCUMWFGYPBVKJXQZ0123456789+/"
LETTERS = np.frombuffer(ALPHABET.encode("ascii"), np.uint8)


def uniform(seed: int, stream: int | np.uint64, counter: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) that depend on (seed, stream, counter) alone: SplitMix64 (Steele et al. 2014).

    NumPy's own generators may change their output from version to version; this must not.
    """
    digest = hashlib.sha256(f"markov\0{seed}\0{int(stream)}".encode()).digest()
    with np.errstate(over="ignore"):
        bits = np.uint64(int.from_bytes(digest[:8])) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_rows(seed: int, stream: int, rows: int, columns: int, sharpness: float) -> np.ndarray:
    """(rows, columns) of chances, each row proportional to x ** sharpness with x exponential.

    Sharpness 1 draws a row uniformly from the simplex, larger values make it more predictable, 0 makes all equal.
    """
    draws = uniform(seed, stream, np.arange(rows * columns, dtype=np.uint64))
    weights = np.maximum((-np.log1p(-draws)) ** sharpness, 1e-12).reshape(rows, columns)
    return weights / weights.sum(axis=1, keepdims=True)


def chosen(chances: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The column that each draw in [0, 1) falls on; `chances` has a row for each draw."""
    bounds = np.cumsum(chances, axis=-1)[..., :-1]
    return (draws[:, None] >= bounds).sum(axis=-1)
