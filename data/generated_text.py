"""Text whose entropy is known: what every source of it computes, and the best loss in windows of a packed stream."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from reducible.data.chance import ALPHABET, LETTERS
from reducible.data.errors import DataError
from reducible.data.known_entropy import KnownEntropy, entropy

_FILE_BYTES = 2**20
STATES_LIMIT = 2**20
"""The most entries of a table of chances."""


@dataclass(frozen=True)
class GeneratedText(ABC):
    """`documents` documents of `length` symbols; every symbol is one ASCII byte.

    A document is a function of the settings and its number alone. A subclass adds settings, draws the symbols and
    computes their entropy.
    """

    kind: ClassVar[str]
    """`generated.kind` of a recipe."""

    documents: int
    length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        self._within(documents=(1, 2**40), length=(1, _FILE_BYTES))

    def _within(self, **limits: tuple[float, float]) -> None:
        """Raises DataError naming the first field that is outside its limits."""
        for field, (lowest, highest) in limits.items():
            if not lowest <= getattr(self, field) <= highest:
                raise DataError(f"generated.{field}: {getattr(self, field)} is not within {lowest} to {highest}")

    @property
    @abstractmethod
    def entropy_rate(self) -> float:
        """Nats per symbol that remain if the past is known: no model can do better in the long run."""

    @property
    def entropy_error(self) -> float:
        """How far `entropy_rate` and all other entropies here may be from the truth; 0: exact."""
        return 0.0

    @property
    @abstractmethod
    def from_start(self) -> np.ndarray:
        """(length,) H(X_i | X_0 .. X_i-1): nats of each symbol of a document, given all before it."""

    def inside(self, known: int) -> np.ndarray | None:
        """(period,) nats of a symbol given the `known` symbols before it, if the document's start is not among them.

        Symbols at equal places modulo the period have equal entropies; most sources are stationary, period 1. None if
        it cannot be computed.
        """
        return None

    @property
    def document_entropy(self) -> float:
        """Nats of one whole document."""
        return float(self.from_start.sum())

    def known_entropy(self, sequence: int) -> KnownEntropy:
        return KnownEntropy(self.entropy_rate, self.entropy_error, self.best_loss(sequence))

    def best_loss(self, sequence: int) -> float | None:
        """Nats per token that no model can go below in windows of `sequence` tokens: one is a symbol or the separator.

        The stream is separator, document, separator ...; windows begin at every place of it equally often. A target
        with m inputs of its window before it is either i < m symbols behind a separator, and costs `from_start[i]`; or
        all m are symbols of its document. Then it is the symbol at place m, m + 1, ... or the separator at the end,
        all equally likely, and the model does not know which, except for the place modulo the period.
        """
        length, nats = self.length, 0.0
        costs = np.append(np.cumsum(np.append(0.0, self.from_start)), self.document_entropy)  # the end costs nothing
        for known in range(1, min(sequence, length) + 1):
            nats += float(costs[known])
            each = self.inside(known)
            if each is None:
                return None
            period = len(each)
            places = (length - known + period - 1 - np.arange(period)) // period  # of known, known + 1, ... < length
            end = (length - known) % period  # the phase that the document's end has, counted from `known`
            ends = int(places[end]) + 1  # places that look like the document's end, and it
            nats += float(places @ np.roll(each, -known)) + ends * entropy(np.array([1 / ends, 1 - 1 / ends]))
        nats += max(0, sequence - length) * float(costs[length + 1])
        return nats / (length + 1) / sequence

    @cached_property
    def _per_file(self) -> int:
        return max(1, _FILE_BYTES // self.length)

    def described(self) -> dict[str, Any]:
        """The settings without the number of documents: asking for more leaves the pieces that exist as they are."""
        return {key: value for key, value in asdict(self).items() if key != "documents"}

    def files(self) -> list[tuple[str, int, str]]:
        """(name, bytes, SHA-256 of the description) of pieces of about 1 MB; more documents add pieces at the end."""
        pieces = []
        for first in range(0, self.documents, self._per_file):
            count = min(self._per_file, self.documents - first)
            content = json.dumps([self.kind, self.described(), first, count], sort_keys=True)
            digest = hashlib.sha256(content.encode()).hexdigest()
            pieces.append((f"{self.kind}/{first // self._per_file:06d}", count * self.length, digest))
        return pieces

    def documents_of(self, name: str) -> Iterator[tuple[str, str]]:
        """(name, text) of the documents of one piece; each depends on the seed and its own number alone."""
        first = int(name.rsplit("/", 1)[1]) * self._per_file
        numbers = np.arange(first, min(first + self._per_file, self.documents), dtype=np.uint64)
        for number, row in zip(numbers, LETTERS[self._symbols(numbers)], strict=True):
            yield f"{self.kind} document {number}", row.tobytes().decode("ascii")

    @abstractmethod
    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        """(documents, length) of places in ALPHABET. All documents advance together, one symbol at a time."""


MOST_SYMBOLS = len(ALPHABET)
