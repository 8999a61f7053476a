"""A dataset as later tasks open it: its examples, its unit, and what MLflow shows about it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reducible.data.batches import Examples
from reducible.data.tokenizer import Tokenizer
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """What every kind of dataset offers."""

    folder: Path
    content: dict[str, Any]
    """dataset.json."""

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def kind(self) -> str:
        return str(self.content["kind"])

    @property
    def unit(self) -> str:
        """The name of a target unit."""
        return kind_named(self.kind).unit

    def examples(self, reads: str, split: str, sequence: int, mask_documents: bool = False) -> Any:
        """The split as a family reads it (`Examples`, with what else its kind offers).

        Raises:
            UserError: this kind of data cannot serve the family, or lacks the split.
        """
        row = kind_named(reads)
        if row.data != self.kind:
            raise UserError(f"{self.name}: is {self.kind}; a family that reads {reads} needs data.kind: {row.data}")
        found: Examples = row.examples(self, split, sequence, mask_documents)
        return found

    def unit_bytes(self) -> np.ndarray | None:
        """(vocabulary,) bytes of text that each target stands for; None if targets are not text."""
        return None

    def described(self, split: str) -> dict[str, Any]:
        """What MLflow shows as this dataset."""
        return {
            "name": self.content["name"],
            "digest": str(self.content["fingerprint"])[:12],
            "source": self.content["source"],
            "split": split,
            **self.content["splits"][split],
        }

    def units(self, split: str) -> int:
        """Target units of the split; 0 if there is no such split."""
        return int(self.content["splits"].get(split, {}).get(f"{self.unit}s", 0))

    def require_split(self, split: str) -> None:
        """Raises UserError if an evaluation asks for a split that the dataset lacks."""
        if not self.units(split):
            advice = kind_named(self.kind).test_split
            raise UserError(f"evaluate.split: {self.name} has no {split} split; {advice}")


class TokenisedDataset(Dataset):
    """Token shards. The artifact refers to its shards' artifacts beside it in the store."""

    @property
    def shards(self) -> list[Path]:
        return [(self.folder / shard).resolve() for shard in self.content["shards"]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the targets."""
        return Tokenizer.load(self.folder / "tokenizer")

    def unit_bytes(self) -> np.ndarray | None:
        return self.tokenizer.token_bytes()


def open_dataset(folder: Path) -> Any:
    """Opens a dataset of any kind: a `Dataset`, with whatever else its kind offers.

    Raises:
        UserError: the folder holds no dataset.
    """
    try:
        content = json.loads((folder / "dataset.json").read_text())
        row = kind_named(content["kind"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: holds no dataset ({error}); make it again") from None
    return row.open(folder, content)
