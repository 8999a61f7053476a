"""What the training benchmarks read: the standard library's source as byte tokens, for us and for the peers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reducible.data.python_files import paths
from reducible.data.shards import write_shard
from reducible.data.sources import Document
from reducible.data.tokenizer import byte_tokenizer


def make_dataset(folder: Path) -> Path:
    """A dataset artifact as the `dataset` task leaves it, without the store around it. Made once."""
    if (folder / "dataset.json").is_file():
        return folder
    tokenizer = byte_tokenizer()
    documents = [Document(name, path.read_text(encoding="utf-8", errors="replace")) for name, path in paths("stdlib")]
    written = write_shard(documents, tokenizer, folder / "shard")
    tokenizer.save(folder / "tokenizer")
    content = {
        "name": "stdlib bytes",
        "source": "builtin:stdlib",
        "kind": "text",
        "fingerprint": "benchmark",
        "tokenizer": tokenizer.identity,
        "vocabulary": tokenizer.vocabulary,
        "splits": written["splits"],
        "shards": ["shard"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def flat_tokens(folder: Path) -> Path:
    """The training tokens as one uint16 file, the format of nanoGPT's loader."""
    from reducible.tasks.dataset.dataset import open_dataset

    path = folder / "train.bin"
    if not path.is_file():
        sequences = open_dataset(folder).examples("text", "train", 1024)
        parts = [sequences.batch(np.arange(i, min(i + 64, len(sequences)))) for i in range(0, len(sequences), 64)]
        tokens = np.concatenate([part["inputs"].ravel() for part in parts]).astype(np.uint16)
        tokens.tofile(path)
    return path


def one_core(core: int | None = None) -> int:
    """Pins this process to one core and one thread, so that peers and we have the same; returns the core."""
    allowed = sorted(os.sched_getaffinity(0))
    chosen = allowed[-1] if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def median(values: Sequence[float]) -> float:
    return float(np.median(values))
