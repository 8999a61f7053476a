"""Token shards: documents in, one Arrow IPC file of token ids per split out, memory-mapped again for reading."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow

from reducible.data.errors import DataError
from reducible.data.formats import Document
from reducible.data.hashes import InputFile
from reducible.data.on_error import Skipped
from reducible.data.sources import Source, read
from reducible.data.split import content_key, is_validation
from reducible.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
_STATISTICS = "shard.json"
_BATCH_BYTES = 2**20  # of text handed to the tokenizer at once
_BATCH_DOCUMENTS = 1024
_CHUNK_TOKENS = 2**22  # in one Arrow record batch
_NAMED = 1000  # skipped inputs named one by one; the count is always complete


def tokenise_files(
    files: Sequence[InputFile],
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    validation: float = 0.05,
    split: Literal["train", "validation"] | None = None,
    held_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """Reads the files of one input shard and writes its token shard; see write_shard."""
    skipped: list[Skipped] = []
    documents = read(files, source, skipped)
    return write_shard(
        documents, tokenizer, folder, validation=validation, split=split, held_out=held_out, skipped=skipped
    )


def write_shard(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    validation: float = 0.05,
    split: Literal["train", "validation"] | None = None,
    held_out: np.ndarray | None = None,
    skipped: Sequence[Skipped] = (),
) -> dict[str, Any]:
    """Writes train.arrow, validation.arrow and shard.json, and returns what shard.json holds.

    Every document goes to a split by its content, a fraction `validation` to validation, unless `split` forces
    one. `held_out` holds content keys (uint64) of the documents of a separate validation source, which are not trained
    on. The stream is separator, document, separator, document: a separator as input opens a document, as target it
    ends the one before. Empty documents are counted and left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = {name: _SplitWriter(folder / f"{name}.arrow", tokenizer) for name in SPLITS}
    forbidden = set() if held_out is None else {int(key) for key in held_out}
    counts = {"empty": 0, "held_out": 0}
    for batch in _batches(documents):
        ids = tokenizer.encode_batch([text for text, _ in batch])
        for (_, data), tokens in zip(batch, ids, strict=True):
            key = content_key(data)
            side = split or SPLITS[is_validation(key, validation)]
            if not data:
                counts["empty"] += 1
            elif side == "train" and key in forbidden:
                counts["held_out"] += 1
            else:
                writers[side].add(tokens, len(data))
    statistics: dict[str, Any] = {
        "tokenizer": tokenizer.identity,
        "splits": {name: writer.close() for name, writer in writers.items()},
        **counts,
        "skipped": len(skipped),
        "skipped_inputs": [str(item) for item in skipped[:_NAMED]],
    }
    (folder / _STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n")
    return statistics


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for document in documents:
        data = document.text.encode()
        batch.append((document.text, data))
        size += len(data)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        kind = pyarrow.from_numpy_dtype(tokenizer.dtype)
        metadata = {"tokenizer": tokenizer.identity, "separator": str(tokenizer.separator)}
        self._schema = pyarrow.schema([pyarrow.field("tokens", kind, nullable=False)], metadata=metadata)
        self._path = path
        self._writer = pyarrow.ipc.new_file(str(path), self._schema)
        self._separator = np.array([tokenizer.separator], tokenizer.dtype)
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0
        self._content = hashlib.sha256()
        self.tokens = self.bytes = self.documents = 0

    def add(self, tokens: np.ndarray, size: int) -> None:
        self._waiting += [self._separator, tokens]
        self._waiting_tokens += 1 + len(tokens)
        self.bytes += size
        self.documents += 1
        if self._waiting_tokens >= _CHUNK_TOKENS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        chunk = np.concatenate(self._waiting)
        self._writer.write_batch(pyarrow.record_batch([pyarrow.array(chunk)], schema=self._schema))
        self._content.update(chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes())
        self.tokens += len(chunk)
        self._waiting, self._waiting_tokens = [], 0

    def close(self) -> dict[str, Any]:
        self._write()
        self._writer.close()
        with self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
            "content": self._content.hexdigest(),
            "sha256": digest,
        }


def statistics(folder: Path) -> dict[str, Any]:
    """What write_shard returned for this folder."""
    try:
        loaded = json.loads((folder / _STATISTICS).read_text())
        loaded["splits"]["train"]["content"], loaded["splits"]["validation"]["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a token shard ({error}); tokenise again") from None
    return dict(loaded)


def open_split(folder: Path, split: str, tokenizer_identity: str) -> list[np.ndarray]:
    """The tokens of one split, memory-mapped, in one array per record batch.

    Raises DataError for a torn file and for tokens of another tokenizer than the one asked for.
    """
    path = folder / f"{split}.arrow"
    expected = statistics(folder)["splits"][split]["tokens"]
    try:
        # Closing gives the file descriptor back; the map lives as long as the arrays do.
        with pyarrow.memory_map(str(path)) as source:
            reader = pyarrow.ipc.open_file(source)
            found = (reader.schema.metadata or {}).get(b"tokenizer", b"").decode()
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a whole token file ({str(error).splitlines()[0]}); tokenise again") from None
    if found != tokenizer_identity:
        raise DataError(
            f"{path}: made with tokenizer {found[:12]}, but {tokenizer_identity[:12]} is asked for; tokenise again"
        )
    arrays = [batch.column(0).to_numpy(zero_copy_only=True) for batch in batches]
    if sum(map(len, arrays)) != expected:
        raise DataError(f"{path}: holds {sum(map(len, arrays))} tokens instead of {expected}; tokenise again")
    return [array for array in arrays if len(array)]
