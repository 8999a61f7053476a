"""A tokenised dataset as later tasks open it: which token shards, which tokenizer, how much of it there is."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.packing import PackedSequences
from data.tokenizer import Tokenizer
from tasks.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """The artifact of the `dataset` task. It refers to its shards' artifacts beside it in the store."""

    folder: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def shards(self) -> list[Path]:
        return [(self.folder / shard).resolve() for shard in self.content["shards"]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    def total(self, split: str, count: str) -> int:
        """tokens, bytes or documents of a split."""
        return int(self.content["splits"][split][count])

    def sequences(self, split: str, sequence: int, mask_documents: bool = False) -> PackedSequences:
        """The split as packed examples of `sequence` target units."""
        tokenizer = self.tokenizer
        return PackedSequences(self.shards, split, sequence, tokenizer.identity, tokenizer.separator, mask_documents)

    def token_bytes(self) -> np.ndarray:
        """(vocabulary,) bytes of text that each token stands for: nats per byte need them."""
        return self.tokenizer.token_bytes()

    def described(self, split: str) -> dict[str, Any]:
        """What MLflow shows as this dataset."""
        return {
            "name": self.name,
            "digest": str(self.content["fingerprint"])[:12],
            "source": self.content["source"],
            "split": split,
            **self.content["splits"][split],
        }


def open_dataset(folder: Path) -> Dataset:
    """Raises UserError where the folder holds no dataset."""
    try:
        return Dataset(folder, json.loads((folder / "dataset.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no dataset ({error}); tokenise again") from None
