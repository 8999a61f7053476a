"""Text from a Markov chain: a source whose entropy rate is known exactly."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from reducible.data.errors import DataError

ALPHABET = "etaoinshrdlcumwfgypbvkjxqzETAOINSHRDLCUMWFGYPBVKJXQZ0123456789+/"
_FILE_BYTES = 2**20
_STATES_LIMIT = 2**20


@dataclass(frozen=True)
class MarkovText:
    """Documents of `length` symbols from a stationary chain of the given order; every symbol is one ASCII byte.

    The chance of symbol j after state i is proportional to x_ij ** sharpness, x_ij exponential: sharpness 1 draws
    the rows uniformly from the simplex, larger values make them more predictable, 0 makes all symbols equal.
    """

    documents: int
    length: int = 1024
    order: int = 2
    symbols: int = 16
    sharpness: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field, lowest, highest in (
            ("documents", 1, 2**40),
            ("length", 1, _FILE_BYTES),
            ("order", 1, 20),
            ("symbols", 2, len(ALPHABET)),
        ):
            if not lowest <= getattr(self, field) <= highest:
                raise DataError(f"generated.{field}: {getattr(self, field)} is not within {lowest} to {highest}")
        if self.symbols**self.order * self.symbols > _STATES_LIMIT:
            raise DataError(
                f"generated: symbols ** (order + 1) is {self.symbols ** (self.order + 1)}, above {_STATES_LIMIT}"
            )
        if not 0 <= self.sharpness <= 20:
            raise DataError(f"generated.sharpness: {self.sharpness} is not within 0 to 20")

    @cached_property
    def transitions(self) -> np.ndarray:
        """(states, symbols): chance of the next symbol; a state is the last `order` symbols, oldest first."""
        states = self.symbols**self.order
        draws = uniform(self.seed, np.uint64(0), np.arange(states * self.symbols, dtype=np.uint64))
        weights = (-np.log1p(-draws)) ** self.sharpness
        weights = np.maximum(weights.reshape(states, self.symbols), 1e-12)
        return weights / weights.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> np.ndarray:
        """(states,): long-run share of each state. Every chance is positive, so it is unique."""
        share = np.full(len(self.transitions), 1 / len(self.transitions))
        for _ in range(100_000):
            joint = (share[:, None] * self.transitions).reshape(self.symbols, -1, self.symbols)
            following = joint.sum(axis=0).reshape(-1)
            following /= following.sum()
            if np.abs(following - share).sum() < 1e-15:
                break
            share = following
        return following

    @property
    def entropy_rate(self) -> float:
        """Nats per symbol that remain if the past is known: no model can do better in the long run."""
        return float(-(self.stationary[:, None] * self.transitions * np.log(self.transitions)).sum())

    @property
    def document_entropy(self) -> float:
        """Nats of one whole document, whose first `order` symbols have no full state before them."""
        share = self.stationary
        if self.length < self.order:
            share = share.reshape(self.symbols**self.length, -1).sum(axis=1)
        start = float(-(share * np.log(share)).sum())
        return start + max(0, self.length - self.order) * self.entropy_rate

    @property
    def _per_file(self) -> int:
        return max(1, _FILE_BYTES // self.length)

    def files(self) -> list[tuple[str, int, str]]:
        """(name, bytes, SHA-256 of the description) of pieces of about 1 MB; more documents add pieces at the end."""
        description = {key: value for key, value in asdict(self).items() if key != "documents"}
        pieces = []
        for first in range(0, self.documents, self._per_file):
            count = min(self._per_file, self.documents - first)
            content = json.dumps(["markov", description, first, count], sort_keys=True)
            digest = hashlib.sha256(content.encode()).hexdigest()
            pieces.append((f"markov/{first // self._per_file:06d}", count * self.length, digest))
        return pieces

    def documents_of(self, name: str) -> Iterator[tuple[str, str]]:
        """(name, text) of the documents of one piece; each depends on the seed and its own number alone."""
        first = int(name.rsplit("/", 1)[1]) * self._per_file
        numbers = np.arange(first, min(first + self._per_file, self.documents))
        for number, row in zip(numbers, self._generate(numbers), strict=True):
            yield f"markov document {number}", row.tobytes().decode("ascii")

    def _generate(self, numbers: np.ndarray) -> np.ndarray:
        """(documents, length) of ASCII bytes. All documents advance together, one symbol at a time."""
        bounds = np.cumsum(self.transitions, axis=1)[:, :-1]
        stride = np.uint64(self.length + 1)
        position = numbers.astype(np.uint64) * stride
        share = np.cumsum(self.stationary)[:-1]
        state = np.searchsorted(share, uniform(self.seed, np.uint64(1), position), side="right")
        indices = np.empty((len(numbers), self.length + self.order), np.uint8)
        for place in range(self.order):
            indices[:, place] = state // self.symbols ** (self.order - 1 - place) % self.symbols
        for place in range(self.order, self.length):
            draw = uniform(self.seed, np.uint64(1), position + np.uint64(place - self.order + 1))
            symbol = (draw[:, None] >= bounds[state]).sum(axis=1)
            state = (state * self.symbols + symbol) % len(self.transitions)
            indices[:, place] = symbol
        letters = np.frombuffer(ALPHABET.encode("ascii"), np.uint8)
        return letters[indices[:, : self.length]]


def uniform(seed: int, stream: np.uint64, counter: np.ndarray) -> np.ndarray:
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
