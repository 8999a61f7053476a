"""Made-up examples for every kind of data a family may read, and a small training of each family."""

from dataclasses import fields
from typing import Any

import numpy as np
from training_cases import VOCABULARY, Ragged, small_spec

from reducible.data.batches import Examples, fixed
from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.examples import TrainingData, batches_of, lengths_of
from reducible.tasks.train.train_spec import TrainSpec

COUNT = 23
LONGEST = 8
FACTS: dict[str, dict[str, Any]] = {
    "text": {"vocabulary": VOCABULARY},
    "sentences": {"vocabulary": VOCABULARY},
    "pairs": {"source_vocabulary": VOCABULARY + 2, "vocabulary": VOCABULARY, "shared": False},
    "series": {"channels": 3},
}
END = 0


class Uneven:
    """Examples of lengths from 1 to LONGEST, as data of that kind hands them over (docs/models.md)."""

    sequence = LONGEST

    def __init__(self, reads: str, split: str) -> None:
        self.reads, self.split = reads, split
        random = np.random.default_rng([len(split), 1])
        self.lengths = random.integers(1, LONGEST + 1, COUNT)
        self.source_lengths = random.integers(1, LONGEST + 1, COUNT)
        self.sizes = np.maximum(self.lengths, self.source_lengths) if reads == "pairs" else self.lengths
        if reads != "pairs":
            del self.source_lengths

    @property
    def fingerprint(self) -> str:
        return f"uneven-{self.reads}-{self.split}"

    def __len__(self) -> int:
        return COUNT

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self.row(index) for index in np.asarray(indices).tolist()]
        return {name: padded([row[name] for row in rows], FILL[name]) for name in rows[0]}

    def row(self, index: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng([index, len(self.split)])
        length = int(self.lengths[index])
        if self.reads == "series":
            observed = random.random((length, 3)) < 0.8
            values = np.cumsum(random.standard_normal((length, 3)), axis=0) * 0.3
            return {
                "values": np.where(observed, values, 0).astype(np.float32),
                "observed": observed,
                "steps": np.ones(length, bool),
            }
        tokens = (np.cumsum(random.integers(1, 3, length - 1)) + index) % (VOCABULARY - 1) + 1
        row = {"inputs": np.append(END, tokens), "targets": np.append(tokens, END)}
        if self.reads == "pairs":
            source = random.integers(1, VOCABULARY + 2, int(self.source_lengths[index]))
            source[-1] = END
            row |= {"source": source, "source_lengths": np.array(len(source))}
        return row

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(np.count_nonzero(batch["steps"] if self.reads == "series" else batch["targets"] != -100))


FILL = {"inputs": END, "targets": -100, "source": END, "source_lengths": 0, "values": 0, "observed": 0, "steps": 0}


def padded(rows: list[np.ndarray], fill: int) -> np.ndarray:
    if rows[0].ndim == 0:
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    widths = [((0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)) for row in rows]
    return np.stack([np.pad(row, width, constant_values=fill) for row, width in zip(rows, widths, strict=True)])


def training_data(spec: TrainSpec) -> TrainingData:
    reads = FAMILIES[spec.family].reads
    splits: list[Examples] = [
        Ragged(split, spec.sequence) if reads == "text" else Uneven(reads, split) for split in ("train", "validation")
    ]
    train, held_out = splits
    return TrainingData(
        batches_of(train, spec.batch, spec.micro_batch, spec.seed),
        batches_of(held_out, spec.sequence, spec.micro_batch, spec.seed),
        fixed(held_out, 7, spec.micro_batch),
        np.arange(VOCABULARY) % 3 + 1 if reads != "series" else None,
        lengths_of(train),
    )


def family_spec(name: str, **changes: Any) -> TrainSpec:
    """A small model of the family, with dropout where it has any, on five or so micro-batches a step."""
    return small_spec(**({"family": name, "model": settings(name), "batch": 40, "micro_batch": 1} | changes))


def settings(name: str, dropout: float = 0.2) -> dict[str, Any]:
    kind = FAMILIES[name]
    config = kind.config(**FACTS[kind.reads]).scaled(16)
    found = {field.name: getattr(config, field.name) for field in fields(config)}
    return found | ({"dropout": dropout} if "dropout" in found else {})
