"""Documents packed end to end into sequences of fixed length."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from reducible.data.errors import DataError
from reducible.data.shards import open_split, statistics

IGNORE = -100  # a target that does not count


class PackedSequences:
    """All tokens of one split as one stream, cut into windows of `sequence` inputs and the targets one place later.

    Every token but the first is a target exactly once. The last window may be partial: its missing targets are
    IGNORE. With `mask_documents` a batch also numbers the documents in each row, for attention that stays inside.
    """

    def __init__(
        self,
        shard_folders: Sequence[Path],
        split: str,
        sequence: int,
        tokenizer_identity: str,
        separator: int,
        mask_documents: bool = False,
    ) -> None:
        if sequence < 1:
            raise DataError(f"data.sequence: {sequence} is not a positive length")
        self.sequence = sequence
        self.split = split
        self._mask_documents = mask_documents
        shards = [statistics(folder) for folder in shard_folders]
        if not shards:
            raise DataError("data: there are no token shards; tokenise a source first")
        self._contents = [shard["splits"][split]["content"] for shard in shards]
        self._separator = separator
        self._tokenizer_identity = tokenizer_identity
        self._parts = [part for folder in shard_folders for part in open_split(folder, split, tokenizer_identity)]
        self._starts = np.cumsum([0] + [len(part) for part in self._parts]).tolist()
        self.tokens: int = self._starts[-1]
        self._partial = (self.tokens - 1) % sequence != 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the examples: tokens in order, tokenizer, length. Paths and times have no part in it."""
        content = [self._contents, self._tokenizer_identity, self.sequence, self.split]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        """Examples in an epoch."""
        return -(-max(0, self.tokens - 1) // self.sequence)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """inputs, targets (B, T) int64; with mask_documents also documents (B, T) int32, counted from each row's start.

        A separator as input belongs to the document that it opens.
        """
        length = self.sequence
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"examples {indices.min()} to {indices.max()} are not within 0 to {len(self) - 1}")
        tokens = np.empty((len(indices), length + 1), np.int64)
        for row, index in enumerate(indices.tolist()):
            self._fill(tokens[row], index * length)
        batch = {"inputs": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
        if self._partial and np.any(indices == len(self) - 1):
            inputs = batch["inputs"]
            inputs[inputs == IGNORE] = self._separator
        if self._mask_documents:
            batch["documents"] = np.cumsum(batch["inputs"] == self._separator, axis=1, dtype=np.int32)
        return batch

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """The number of tokens that are targets."""
        return int(np.count_nonzero(batch["targets"] != IGNORE))

    def _fill(self, row: np.ndarray, start: int) -> None:
        """Copies the stream from `start` into the row, across the borders of parts, with IGNORE behind the end."""
        part = bisect_right(self._starts, start) - 1
        filled = 0
        while filled < len(row):
            if part >= len(self._parts):
                row[filled:] = IGNORE
                return
            begin = start + filled - self._starts[part]
            piece = self._parts[part][begin : begin + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            part += 1
