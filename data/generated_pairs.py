"""Pairs whose conditional entropy is known exactly: symbols copied, reversed or sorted, with optional noise."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from reducible.data.chance import ALPHABET, uniform
from reducible.data.errors import DataError

_PER_FILE = 10_000
_LONGEST = 4096


@dataclass(frozen=True)
class GeneratedPairs:
    """`examples` pairs of texts: symbols with spaces between.

    A source has `shortest` to `length` symbols (uniform; shortest defaults to length), each uniform over `symbols`.
    The target is the source `copy`-ed, `reverse`-d or `sort`-ed; then each of its symbols is replaced, with
    probability `noise`, by one of the others, all equally likely.
    """

    kind: Literal["copy", "reverse", "sort"]
    examples: int
    symbols: int = 16
    length: int = 12
    shortest: int | None = None
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("copy", "reverse", "sort"):
            raise DataError(f"generated.kind: {self.kind!r} is not one of copy, reverse, sort")
        for field, lowest, highest in (
            ("examples", 1, 2**40),
            ("symbols", 2, len(ALPHABET)),
            ("length", 1, _LONGEST),
            ("shortest", 1, self.length),
        ):
            value = getattr(self, field)
            if value is not None and not lowest <= value <= highest:
                raise DataError(f"generated.{field}: {value} is not within {lowest} to {highest}")
        if not 0 <= self.noise <= 1:
            raise DataError(f"generated.noise: {self.noise} is not within 0 to 1")

    @property
    def entropy_per_symbol(self) -> float:
        """Nats of a target symbol given the source: no model can do better. 0 without noise.

        H(p) + p log(symbols - 1): whether it was replaced, and if so by which of the others. The source tells the
        target's length, so the end adds nothing.
        """
        noise = self.noise
        whether = -sum(share * math.log(share) for share in (noise, 1 - noise) if share > 0)
        return whether + noise * math.log(self.symbols - 1)

    def nats_of(self, source: str, target: str) -> float:
        """-log p(target | source) in nats under the true model, for this pair."""
        symbols = np.array([ALPHABET.index(symbol) for symbol in source.split()])
        expected = _spelled(self._ordered(symbols)).split()
        replaced = sum(a != b for a, b in zip(expected, target.split(), strict=True))
        nats = 0.0
        for count, chance in ((replaced, self.noise / (self.symbols - 1)), (len(symbols) - replaced, 1 - self.noise)):
            if count:
                nats -= count * math.log(chance)
        return nats

    def files(self) -> list[tuple[str, int, str]]:
        """(name, bytes, SHA-256 of the description) of pieces of 10,000 pairs; more examples add pieces at the end."""
        description = {key: value for key, value in asdict(self).items() if key != "examples"}
        pieces = []
        for first in range(0, self.examples, _PER_FILE):
            count = min(_PER_FILE, self.examples - first)
            content = json.dumps(["pairs", description, first, count], sort_keys=True)
            digest = hashlib.sha256(content.encode()).hexdigest()
            pieces.append((f"{self.kind}/{first // _PER_FILE:06d}", count * 4 * self.length, digest))
        return pieces

    def pairs_of(self, name: str) -> Iterator[tuple[str, str, str]]:
        """(name, source, target) of one piece; each depends on the description and its number alone."""
        first = int(name.rsplit("/", 1)[1]) * _PER_FILE
        numbers = np.arange(first, min(first + _PER_FILE, self.examples), dtype=np.uint64)
        shortest = self.shortest or self.length
        lengths = shortest + (self._draw(0, numbers) * (self.length - shortest + 1)).astype(np.int64)
        places = numbers[:, None] * np.uint64(self.length) + np.arange(self.length, dtype=np.uint64)
        sources = (self._draw(1, places) * self.symbols).astype(np.int64)
        replaced = self._draw(2, places) < self.noise
        others = 1 + (self._draw(3, places) * (self.symbols - 1)).astype(np.int64)
        for row, number in enumerate(numbers.tolist()):
            length = int(lengths[row])
            source = sources[row, :length]
            target = self._ordered(source)
            target = np.where(replaced[row, :length], (target + others[row, :length]) % self.symbols, target)
            yield f"{self.kind} pair {number}", _spelled(source), _spelled(target)

    def _ordered(self, symbols: np.ndarray) -> np.ndarray:
        return {"copy": symbols, "reverse": symbols[::-1], "sort": np.sort(symbols)}[self.kind]

    def _draw(self, stream: int, counter: np.ndarray) -> np.ndarray:
        return uniform(self.seed, np.uint64(100 + stream), counter)


def _spelled(symbols: np.ndarray) -> str:
    return " ".join(ALPHABET[symbol] for symbol in symbols.tolist())
