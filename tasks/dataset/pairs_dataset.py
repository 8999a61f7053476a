"""A dataset of pairs as later tasks open it."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reducible.data.pairs import Pairs
from reducible.data.tokenizer import Tokenizer
from reducible.tasks.dataset.dataset import described
from reducible.tasks.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairDataset:
    """The artifact refers to its shards' artifacts beside it in the store."""

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
        """Of the targets."""
        return Tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def source_tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "source_tokenizer")

    def examples(self, reads: str, split: str, sequence: int, mask_documents: bool = False) -> Pairs:
        if reads != "pairs":
            raise UserError(f"{self.name}: is pairs; a family that reads {reads} needs data.kind: text")
        if split not in self.content["splits"]:
            raise UserError(f"{self.name}: has no {split} split; name a source for it (data.{split})")
        examples = Pairs(self.shards, split, sequence, self.source_tokenizer, self.tokenizer)
        if examples.cut:
            log.warning(
                "data.sequence: %d of %d %s pairs have a side longer than %d tokens with its end; it is cut",
                *(examples.cut, len(examples), split, sequence),
            )
        return examples

    @property
    def lowercase(self) -> bool:
        """Whether both sides were made lower case."""
        return bool(self.content["lowercase"])

    def unit_bytes(self) -> np.ndarray:
        return self.tokenizer.token_bytes()

    def described(self, split: str) -> dict[str, Any]:
        return described(self.content, split)
