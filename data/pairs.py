"""Pairs as token ids: one Arrow file a split, memory-mapped again as examples of a source and a target."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow

from reducible.data.errors import DataError
from reducible.data.packing import IGNORE
from reducible.data.pair_files import Pair
from reducible.data.sentences import target_rows
from reducible.data.split import content_key, is_validation
from reducible.data.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
_STATISTICS = "pairs.json"
_CHUNK = 2**14  # pairs in one Arrow record batch


SplitBy = Literal["source", "target", "both"]
"""Which texts of pairs never straddle splits."""


@dataclass(frozen=True)
class Division:
    """Chooses the split of a pair by the SHA-256 of its texts, so that equal texts are in one split.

    by `source`: a share of the different sources validates. by `target`: a share of the different targets. by `both`:
    a share of the different targets, and no training pair has a source or a target that validates or tests.
    `split` puts all pairs in one split, whatever they hold.
    """

    by: SplitBy = "source"
    share: float = 0.05
    split: Literal["train", "validation", "test"] | None = None

    def split_of(self, pair: Pair) -> str:
        if self.split is not None:
            return self.split
        return SPLITS[
            is_validation(content_key((pair.source if self.by == "source" else pair.target).encode()), self.share)
        ]


@dataclass(frozen=True)
class HeldOut:
    """Content keys (uint64) of the sources and targets that validate or test: they are not trained on."""

    sources: frozenset[int] = frozenset()
    targets: frozenset[int] = frozenset()

    @classmethod
    def of(cls, pairs: Iterable[Pair], division: Division) -> "HeldOut":
        """The texts of the pairs outside training, as far as the division looks at them."""
        outside = [pair for pair in pairs if division.split_of(pair) != "train"]
        sides = [
            frozenset(content_key(text.encode()) for text in texts) if division.by in (side, "both") else frozenset()
            for side, texts in (
                ("source", {pair.source for pair in outside}),
                ("target", {pair.target for pair in outside}),
            )
        ]
        return cls(*sides)

    def __contains__(self, pair: Pair) -> bool:
        return bool(
            (self.sources and content_key(pair.source.encode()) in self.sources)
            or (self.targets and content_key(pair.target.encode()) in self.targets)
        )

    def save(self, folder: Path) -> None:
        for side in ("sources", "targets"):
            np.save(folder / f"{side}.npy", np.array(sorted(getattr(self, side)), np.uint64))

    @classmethod
    def load(cls, *folders: Path) -> "HeldOut":
        return cls(
            *(
                frozenset(key for folder in folders for key in np.load(folder / f"{side}.npy").tolist())
                for side in ("sources", "targets")
            )
        )


def write_pairs(
    pairs: Iterable[Pair],
    source_tokenizer: Tokenizer,
    tokenizer: Tokenizer,
    folder: Path,
    division: Division,
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Writes train.arrow, validation.arrow, test.arrow and pairs.json, and returns what pairs.json holds.

    Columns: source and target (lists of token ids without separators), source_text and target_text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = {split: _SplitWriter(folder / f"{split}.arrow", source_tokenizer, tokenizer) for split in SPLITS}
    left_out = 0
    iterator = iter(pairs)
    while chunk := list(islice(iterator, _CHUNK)):
        divided: dict[str, list[Pair]] = {split: [] for split in SPLITS}
        for pair in chunk:
            split = division.split_of(pair)
            if split == "train" and held_out is not None and pair in held_out:
                left_out += 1
            else:
                divided[split].append(pair)
        for split, members in divided.items():
            writers[split].add(members)
    statistics: dict[str, Any] = {
        "source_tokenizer": source_tokenizer.identity,
        "tokenizer": tokenizer.identity,
        "splits": {split: writer.close() for split, writer in writers.items()},
        "held_out": left_out,
    }
    (folder / _STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n")
    return statistics


class _SplitWriter:
    def __init__(self, path: Path, source_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
        self._tokenizers = (source_tokenizer, tokenizer)
        sides = [pyarrow.list_(pyarrow.from_numpy_dtype(side.dtype)) for side in self._tokenizers]
        names = ("source", "target", "source_text", "target_text")
        kinds = (*sides, pyarrow.string(), pyarrow.string())
        metadata = {"source_tokenizer": source_tokenizer.identity, "tokenizer": tokenizer.identity}
        fields = [pyarrow.field(name, kind, nullable=False) for name, kind in zip(names, kinds, strict=True)]
        self._schema = pyarrow.schema(fields, metadata=metadata)
        self._path = path
        self._writer = pyarrow.ipc.new_file(str(path), self._schema)
        self._content = hashlib.sha256()
        self.counts = dict.fromkeys(
            (
                "pairs",
                "source_tokens",
                "target_tokens",
                "source_bytes",
                "target_bytes",
                "source_unknown",
                "target_unknown",
            ),
            0,
        )

    def add(self, pairs: list[Pair]) -> None:
        if not pairs:
            return
        texts = ([pair.source for pair in pairs], [pair.target for pair in pairs])
        self.counts["pairs"] += len(pairs)
        columns = []
        for name, tokenizer, side, kind in zip(
            ("source", "target"), self._tokenizers, texts, self._schema.types, strict=False
        ):
            ids = tokenizer.encode_batch(side)
            offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
            values = np.concatenate([np.zeros(0, tokenizer.dtype), *ids]).astype(tokenizer.dtype, copy=False)
            columns.append(pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values), type=kind))
            for array in (offsets, values):
                self._content.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            self._content.update("\0".join(side).encode())
            self.counts[f"{name}_tokens"] += len(values)
            self.counts[f"{name}_bytes"] += sum(len(text.encode()) for text in side)
            if tokenizer.kind in ("words", "characters"):
                self.counts[f"{name}_unknown"] += int(np.count_nonzero(values == 0))
        columns += [pyarrow.array(side, pyarrow.string()) for side in texts]
        self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))

    def close(self) -> dict[str, Any]:
        self._writer.close()
        with self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {**self.counts, "content": self._content.hexdigest(), "sha256": digest}


def statistics(folder: Path) -> dict[str, Any]:
    """What write_pairs returned for this folder."""
    try:
        loaded = json.loads((folder / _STATISTICS).read_text())
        for split in SPLITS:
            loaded["splits"][split]["content"], loaded["splits"][split]["pairs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: holds no pairs ({error}); tokenise again") from None
    return dict(loaded)


def _open(folder: Path, split: str, identities: tuple[str, str]) -> Iterator[pyarrow.RecordBatch]:
    path = folder / f"{split}.arrow"
    try:
        # Closing gives the file descriptor back; the map lives as long as the arrays do.
        with pyarrow.memory_map(str(path)) as source:
            reader = pyarrow.ipc.open_file(source)
            metadata = reader.schema.metadata or {}
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a whole file of pairs ({str(error).splitlines()[0]}); tokenise again") from None
    for name, wanted in zip(("source_tokenizer", "tokenizer"), identities, strict=True):
        found = metadata.get(name.encode(), b"").decode()
        if found != wanted:
            raise DataError(f"{path}: made with {name} {found[:12]}, but {wanted[:12]} is asked for; tokenise again")
    if sum(map(len, batches)) != statistics(folder)["splits"][split]["pairs"]:
        raise DataError(f"{path}: holds {sum(map(len, batches))} pairs instead of what was written; tokenise again")
    yield from batches


@dataclass(frozen=True)
class _Side:
    """One side of one record batch: the tokens of row i are values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, column: pyarrow.ListArray) -> "_Side":
        return cls(column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy(zero_copy_only=True))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class Pairs:
    """The pairs of one split in the order of the folders.

    A target of n tokens is n + 1 targets: its tokens and the separator as end. If these are more than `sequence`, the
    first `sequence` are kept, without an end. If a source and its end are more than `sequence`, the first sequence - 1
    tokens and the end are kept. No pair is left out, so pairs that are too long are evaluated too.
    """

    def __init__(
        self, folders: Sequence[Path], split: str, sequence: int, source_tokenizer: Tokenizer, tokenizer: Tokenizer
    ) -> None:
        if sequence < 1:
            raise DataError(f"data.sequence: {sequence} is not a positive length")
        if not folders:
            raise DataError("data: there are no pairs; tokenise a source first")
        if split not in SPLITS:
            raise DataError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
        self.sequence = sequence
        self.split = split
        self.separator = tokenizer.separator
        self.source_separator = source_tokenizer.separator
        self._identities = (source_tokenizer.identity, tokenizer.identity)
        self._contents = [statistics(folder)["splits"][split]["content"] for folder in folders]
        self._batches = [batch for folder in folders for batch in _open(folder, split, self._identities)]
        self._firsts = np.cumsum([0, *map(len, self._batches)]).tolist()
        self._sources = [_Side.of(batch.column(0)) for batch in self._batches]
        self._targets = [_Side.of(batch.column(1)) for batch in self._batches]
        whole_sources, whole_targets = (
            np.concatenate([np.zeros(0, np.int64), *(np.diff(side.offsets) for side in sides)]) + 1
            for sides in (self._sources, self._targets)
        )
        self.source_lengths = np.minimum(whole_sources, sequence)
        """(examples,) source tokens of each, the end included."""
        self.lengths = np.minimum(whole_targets, sequence)
        """(examples,) target units of each, the end included."""
        self.sizes = np.maximum(self.source_lengths, self.lengths)
        self.cut = int(np.count_nonzero(np.maximum(whole_sources, whole_targets) > sequence))
        """How many pairs have a side that is too long."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the examples: tokens, texts, tokenizers, length. Paths and times have no part in it."""
        content = ["pairs", self._contents, self._identities, self.sequence, self.split]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """source (B, S) int64: tokens, then the separator as end, padded with separator; source_lengths (B,) int64,
        the end included; inputs and targets (B, T) int64 as data/sentences.py has them. S and T are the longest of
        the batch."""
        places = [self._place(index) for index in np.asarray(indices, np.int64).tolist()]
        sources = [self._sources[part][row][: self.sequence - 1] for part, row in places]
        lengths = np.array([len(source) + 1 for source in sources], np.int64)
        source = np.full((len(sources), lengths.max(initial=1)), self.source_separator, np.int64)
        for number, tokens in enumerate(sources):
            source[number, : len(tokens)] = tokens
        targets = [self._targets[part][row] for part, row in places]
        return {"source": source, "source_lengths": lengths, **target_rows(targets, self.sequence, self.separator)}

    def texts(self, indices: Iterable[int]) -> list[tuple[str, str]]:
        """Source and target as they were read: uncut, and whatever the tokenizers make of them."""
        places = [self._place(int(index)) for index in indices]
        return [
            (self._batches[part].column(2)[row].as_py(), self._batches[part].column(3)[row].as_py())
            for part, row in places
        ]

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """The number of target tokens that count."""
        return int(np.count_nonzero(batch["targets"] != IGNORE))

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} is not within 0 to {len(self) - 1}")
        part = bisect_right(self._firsts, index) - 1
        return part, index - self._firsts[part]
