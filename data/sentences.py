"""One sentence an example: the documents of the token shards one by one, each between a separator and its end."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from reducible.data.errors import DataError
from reducible.data.packing import IGNORE
from reducible.data.shards import open_split, statistics


class Sentences:
    """The documents of one split in the order of the shards (`data.documents: line` makes a line a document).

    A document of n tokens is n + 1 targets: its tokens and the separator as end. If these are more than `sequence`,
    the first `sequence` are kept, without an end.
    """

    def __init__(
        self, shard_folders: Sequence[Path], split: str, sequence: int, tokenizer_identity: str, separator: int
    ) -> None:
        if sequence < 1:
            raise DataError(f"data.sequence: {sequence} is not a positive length")
        shards = [statistics(folder) for folder in shard_folders]
        if not shards:
            raise DataError("data: there are no token shards; tokenise a source first")
        self.sequence = sequence
        self.split = split
        self._separator = separator
        self._content = [[shard["splits"][split]["content"] for shard in shards], tokenizer_identity]
        self._parts = [part for folder in shard_folders for part in open_split(folder, split, tokenizer_identity)]
        # A document lies in one part as a whole: data/shards.py writes separator and tokens together.
        opens = [np.flatnonzero(part == separator) for part in self._parts]
        self._first_of_part = np.cumsum([0] + [len(places) for places in opens]).tolist()
        self._starts = np.concatenate([np.zeros(0, np.int64), *(places + 1 for places in opens)])
        ends = [
            np.append(places[1:], len(part)) for places, part in zip(opens, self._parts, strict=True) if len(places)
        ]
        self._tokens = np.concatenate([np.zeros(0, np.int64), *ends]) - self._starts
        self.lengths = np.minimum(self._tokens + 1, sequence)
        """(examples,) target units of each, the end included."""

    @property
    def sizes(self) -> np.ndarray:
        return self.lengths

    @property
    def cut(self) -> int:
        """How many sentences are longer than `sequence` allows."""
        return int(np.count_nonzero(self._tokens >= self.sequence))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the examples: tokens in order, tokenizer, length. Paths and times have no part in it."""
        content = ["sentences", *self._content, self.sequence, self.split]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """inputs (B, T) int64: separator, then the tokens, padded with separator; targets (B, T): the tokens, then
        the separator as end, then IGNORE. T is the longest of the batch."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"examples {indices.min()} to {indices.max()} are not within 0 to {len(self) - 1}")
        return target_rows([self.tokens(index) for index in indices.tolist()], self.sequence, self._separator)

    def tokens(self, index: int) -> np.ndarray:
        """All tokens of one sentence, without separators."""
        part = self._parts[bisect_right(self._first_of_part, index) - 1]
        start = int(self._starts[index])
        return part[start : start + int(self._tokens[index])]

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """The number of tokens that are targets."""
        return int(np.count_nonzero(batch["targets"] != IGNORE))


def target_rows(rows: Sequence[np.ndarray], sequence: int, separator: int) -> dict[str, np.ndarray]:
    """inputs and targets (B, T) of rows of tokens, as a decoder reads and predicts them; see Sentences.batch."""
    longest = min(max((len(row) + 1 for row in rows), default=1), sequence)
    inputs = np.full((len(rows), longest), separator, np.int64)
    targets = np.full((len(rows), longest), IGNORE, np.int64)
    for number, row in enumerate(rows):
        kept = row[:longest]
        targets[number, : len(kept)] = kept
        if len(kept) < longest:
            targets[number, len(kept)] = separator
        inputs[number, 1 : len(kept) + 1] = kept[: longest - 1]
    return {"inputs": inputs, "targets": targets}
