"""Multi30k as the published transformer-tiny reads it: tokenised, lowercased, the joint BPE codes of the data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from reducible.data.batches import fixed
from reducible.data.buckets import Buckets
from reducible.data.packing import IGNORE
from reducible.models.cost.ledger import Lengths
from reducible.tasks.train.examples import TrainingData

SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
SEPARATOR, UNKNOWN = 0, 1


class Codes:
    """BPE as subword-nmt writes it: merges in order of rank, `</w>` at the end of a word."""

    def __init__(self, path: Path) -> None:
        _, *lines = path.read_text().splitlines()  # the first line names the version
        self.rank = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        self.pieces = lru_cache(maxsize=None)(self._pieces)

    def _pieces(self, word: str) -> tuple[str, ...]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:], strict=False))
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces = merged
        return tuple(pieces)

    def encode(self, line: str) -> list[str]:
        return [piece for word in line.split() for piece in self.pieces(word)]


@dataclass(frozen=True)
class Translations:
    """The pairs of one split as ids (data/buckets.py: RaggedExamples)."""

    split: str
    sequence: int
    sources: list[np.ndarray]
    targets: list[np.ndarray]
    """Both without separators; too long ones are cut as data/pairs.py does."""

    @property
    def fingerprint(self) -> str:
        return f"multi30k-{self.split}-{self.sequence}"

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(target) + 1 for target in self.targets])

    @property
    def source_lengths(self) -> np.ndarray:
        return np.array([len(source) + 1 for source in self.sources])

    @property
    def sizes(self) -> np.ndarray:
        return np.maximum(self.lengths, self.source_lengths)

    def __len__(self) -> int:
        return len(self.targets)

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(np.count_nonzero(batch["targets"] != IGNORE))

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        sources, targets = [self.sources[i] for i in indices], [self.targets[i] for i in indices]
        source_BS = np.full((len(indices), max(map(len, sources)) + 1), SEPARATOR)
        inputs_BT = np.full((len(indices), max(map(len, targets)) + 1), SEPARATOR)
        targets_BT = np.full_like(inputs_BT, IGNORE)
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            source_BS[row, : len(source)] = source
            inputs_BT[row, 1 : len(target) + 1] = target
            targets_BT[row, : len(target)] = target
            targets_BT[row, len(target)] = SEPARATOR
        lengths_B = np.array([len(source) + 1 for source in sources])
        return {"source": source_BS, "source_lengths": lengths_B, "inputs": inputs_BT, "targets": targets_BT}


@dataclass(frozen=True)
class Corpus:
    vocabulary: list[str]
    """Of both sides: the pieces that occur in training, after the separator and the unknown."""
    splits: dict[str, Translations]
    references: list[str]
    """Of the test split, as they stand in its file."""

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self.vocabulary[token] for token in tokens).replace("</w>", " ").strip()

    def training(self, batch: int, micro_batch: int, seed: int) -> TrainingData:
        train, validation = self.splits["train"], self.splits["validation"]
        return TrainingData(
            Buckets(train, batch, micro_batch, seed),
            Buckets(validation, batch, micro_batch, seed),
            fixed(validation, len(validation), micro_batch),
            None,
            Lengths.measured(train.lengths.tolist(), train.source_lengths.tolist()),
        )


def read(folder: Path, source: str, target: str, sequence: int = 62) -> Corpus:
    """`folder`: that of multi30k. A pair of more than `sequence` pieces a side is cut (62 was the published limit)."""
    codes = Codes(folder / "bpe10k_joint.codes")
    lines = {
        (split, side): (folder / "tok" / f"{name}.lc.norm.tok.{side}").read_text().splitlines()
        for split, name in SPLITS.items()
        for side in (source, target)
    }
    pieces = {key: [codes.encode(line) for line in texts] for key, texts in lines.items()}
    known = sorted({piece for side in (source, target) for line in pieces["train", side] for piece in line})
    vocabulary = ["", "⁇ ", *known]
    number = {piece: index for index, piece in enumerate(vocabulary)}

    def ids(split: str, side: str) -> list[np.ndarray]:
        rows = ([number.get(piece, UNKNOWN) for piece in line[: sequence - 1]] for line in pieces[split, side])
        return [np.array(row, np.int64) for row in rows]

    splits = {split: Translations(split, sequence, ids(split, source), ids(split, target)) for split in SPLITS}
    return Corpus(vocabulary, splits, lines["test", target])
