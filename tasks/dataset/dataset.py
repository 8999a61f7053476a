"""A dataset as later tasks open it: its examples, what a unit of it is, and what MLflow shows of it."""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reducible.data.batches import Examples
from reducible.data.packing import PackedSequences
from reducible.data.tokenizer import Tokenizer
from reducible.tasks.errors import UserError

KINDS = {
    "text": "reducible.tasks.dataset.dataset:TextDataset",
    "pairs": "reducible.tasks.dataset.pairs_dataset:PairDataset",
    "series": "reducible.tasks.dataset.series_dataset:SeriesDataset",
}
"""Who opens a dataset whose dataset.json says that `kind`."""


TEST_SPLIT = "pairs have one with data.test, series with data.test_share; else take validation"
"""What to say where a test split is asked for and there is none."""


class Dataset(Protocol):
    """What every kind of dataset offers."""

    folder: Path
    content: dict[str, Any]
    unit: str
    """What a target unit is called: token or step."""

    @property
    def name(self) -> str: ...

    def examples(self, reads: str, split: str, sequence: int, mask_documents: bool = False) -> Examples:
        """The split as a family reads it; UserError where this kind of data cannot serve."""
        ...

    def unit_bytes(self) -> np.ndarray | None:
        """(vocabulary,) bytes of text that a target stands for, where nats per byte make sense."""
        ...

    def described(self, split: str) -> dict[str, Any]:
        """What MLflow shows as this dataset."""
        ...


@dataclass(frozen=True)
class TextDataset:
    """Tokenised documents. The artifact refers to its shards' artifacts beside it in the store."""

    folder: Path
    content: dict[str, Any]
    unit = "token"

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def shards(self) -> list[Path]:
        return [(self.folder / shard).resolve() for shard in self.content["shards"]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    def examples(self, reads: str, split: str, sequence: int, mask_documents: bool = False) -> Examples:
        tokenizer = self.tokenizer
        if reads == "text":
            return PackedSequences(
                self.shards, split, sequence, tokenizer.identity, tokenizer.separator, mask_documents
            )
        if reads == "sentences":
            from reducible.data.sentences import Sentences

            return Sentences(self.shards, split, sequence, tokenizer.identity, tokenizer.separator)
        raise UserError(f"{self.name}: is text; a family that reads {reads} needs data.kind: {reads}")

    def unit_bytes(self) -> np.ndarray | None:
        return self.tokenizer.token_bytes()

    def described(self, split: str) -> dict[str, Any]:
        return described(self.content, split)


def described(content: dict[str, Any], split: str) -> dict[str, Any]:
    """The dataset.json of any kind as MLflow shows it."""
    return {
        "name": content["name"],
        "digest": str(content["fingerprint"])[:12],
        "source": content["source"],
        "split": split,
        **content["splits"][split],
    }


def require_split(dataset: Any, split: str) -> None:
    """Raises UserError where an evaluation asks for a split that the dataset lacks."""
    if not dataset.content["splits"].get(split, {}).get(f"{dataset.unit}s"):
        raise UserError(f"evaluate.split: {dataset.name} has no {split} split; {TEST_SPLIT}")


def open_dataset(folder: Path) -> Any:
    """The dataset of whatever kind it is (`Dataset`; any more that its kind offers).

    Raises:
        UserError: the folder holds no dataset.
    """
    try:
        content = json.loads((folder / "dataset.json").read_text())
        module, _, name = KINDS[content["kind"]].partition(":")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: holds no dataset ({error}); make it again") from None
    return getattr(import_module(module), name)(folder, content)
