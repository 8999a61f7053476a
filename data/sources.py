"""Where documents come from: what a recipe may name, the input files behind it, and the documents inside them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from reducible.data import formats, schemes
from reducible.data.errors import DataError
from reducible.data.formats import Document, Documents
from reducible.data.generated_text import GeneratedText
from reducible.data.hashes import HashCache, InputFile
from reducible.data.on_error import OnError, Skipped, usable
from reducible.data.scheme import Kind


@dataclass(frozen=True)
class Source:
    """Text to train on: `location` is a file, folder, glob or builtin:NAME, or `generated` describes it."""

    location: str = ""
    column: str | None = None
    documents: Documents = "file"
    on_error: OnError = "refuse"
    generated: GeneratedText | None = None
    field: str = "data.source"
    """The key of the recipe that holds the location."""

    def __post_init__(self) -> None:
        if bool(self.location) == bool(self.generated):
            raise DataError("source: give either a location (file, folder, glob, builtin:stdlib) or generated: {...}")
        for key, allowed in (("documents", get_args(Documents)), ("on_error", get_args(OnError))):
            if getattr(self, key) not in allowed:
                raise DataError(f"{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        documents = schemes.settings(self.location, "text").get("documents", self.documents)
        object.__setattr__(self, "documents", documents)


def listing(source: Source, cache: Path | None = None) -> list[InputFile]:
    """Every input file of the source, sorted by name, hashed; `cache` is a folder that remembers the hashes."""
    if source.generated is not None:
        return [InputFile(name, "", size, digest) for name, size, digest in source.generated.files()]
    return files_of(source.location, "text", source.on_error, cache, source.field)


def files_of(
    location: str, kind: Kind, on_error: OnError = "refuse", cache: Path | None = None, field: str = "data.source"
) -> list[InputFile]:
    """Every file that the location names for this kind of data, sorted by name, hashed.

    Raises:
        DataError: one line that begins with `field`, the key of the recipe that holds the location.
    """
    hashes = HashCache(cache)
    files = []
    try:
        found = schemes.files(location, kind, cache)
    except DataError as error:
        raise DataError(f"{field}: {error}") from None
    for name, path in sorted((_printable(name), path) for name, path in found):
        try:
            size, digest = hashes.sha256(path)
        except OSError as error:
            if on_error == "refuse":
                raise DataError(f"{path}: {_reason(error)}; repair or remove it, or set on_error: skip") from None
            size, digest = 0, ""
        files.append(InputFile(name, str(path), size, digest))
    hashes.save()
    return files


def _printable(name: str) -> str:
    """A file name need not be Unicode on Linux; what is printed, hashed and stored must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# Borders between input shards depend on each file alone: one file in about every 100 and every 1.5 MB ends a shard.
_BYTES_PER_SHARD = 1.5 * 2**20
_FILES_PER_SHARD = 100
_LIMIT = 8 * 2**20


def groups(files: Sequence[InputFile]) -> list[list[InputFile]]:
    """Cuts the listing into input shards whose borders the files' own hashes define.

    A file that comes or goes therefore changes the shard it falls in and no other. A shard above 8 MB is cut
    again inside itself; a single file is never cut.
    """
    shards: list[list[InputFile]] = [[]]
    for file in files:
        shards[-1].append(file)
        if _draw(file) < file.size / _BYTES_PER_SHARD + 1 / _FILES_PER_SHARD:
            shards.append([])
    return [part for shard in shards if shard for part in _cut(shard)]


def _cut(shard: list[InputFile]) -> list[list[InputFile]]:
    if len(shard) == 1 or sum(file.size for file in shard) <= _LIMIT:
        return [shard]
    border = min(range(1, len(shard)), key=lambda i: _draw(shard[i]))
    return _cut(shard[:border]) + _cut(shard[border:])


def _draw(file: InputFile) -> float:
    """A number in [0, 1) from the file's name and hash. The name counts because equal files must not all be borders."""
    digest = hashlib.sha256(f"border\0{file.name}\0{file.sha256}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def read(files: Sequence[InputFile], source: Source, skipped: list[Skipped]) -> Iterator[Document]:
    """The documents of many files in order; what on_error: skip leaves out is named in `skipped`."""
    for file in files:
        yield from read_documents(file, source, skipped)


def read_documents(file: InputFile, source: Source, skipped: list[Skipped] | None = None) -> Iterator[Document]:
    """The documents of one file. What cannot be used is refused or named in `skipped`, as the source says (`usable`).

    Raises:
        DataError: also, whatever the source says, for a file that changed since it was listed.
    """
    if source.generated is not None:
        yield from (Document(name, text) for name, text in source.generated.documents_of(file.name))
        return
    reader = formats.Reader(file, source.column, source.documents)
    yield from usable([file], reader.records, source.on_error, [] if skipped is None else skipped)
