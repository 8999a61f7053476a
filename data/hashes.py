"""Input files by their SHA-256, remembered by path, size and time of change: a large folder is hashed once."""

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from reducible.data.errors import DataError

# A file that changes twice within one tick of the clock can keep its size and time: the hash of a file younger than
# this is not remembered.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class InputFile:
    """One input. `name` is relative to the source, so that it is the same on every machine; `path` is not."""

    name: str
    path: str = field(compare=False)
    size: int
    sha256: str  # of the bytes on disk; empty if they could not be read


class HashCache:
    """Remembers hashes in `folder` (None: not at all). A damaged memory costs nothing but hashing again."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "hashes.json"
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        if self._file is not None and self._file.is_file():
            try:
                known = json.loads(self._file.read_text())
                self._known = known if isinstance(known, dict) else {}
            except (OSError, ValueError):
                self._known = {}

    def sha256(self, path: Path) -> tuple[int, str]:
        """Size and hash. Raises OSError if the file cannot be read or is not a regular file."""
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
            key, mark = str(path.absolute()), [status.st_size, status.st_mtime_ns]
            known = self._known.get(key)
            if known is not None and known[:2] == mark:
                return status.st_size, str(known[2])
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            self._known[key] = [*mark, digest]
            self._changed = True
        return status.st_size, digest

    def save(self) -> None:
        if self._file is None or not self._changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._known))
        os.replace(temporary, self._file)


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading. Raises OSError for a pipe or device, which would block for ever."""
    if stat.S_ISDIR(path.stat().st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "not a regular file")
    return path.open("rb")


def verify_splits(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the SHA-256 of every SPLIT.arrow with what was written; raises DataError."""
    for split, expected in splits.items():
        path = folder / f"{split}.arrow"
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; tokenise again") from None
        if found != expected["sha256"]:
            raise DataError(f"{path}: is torn or was altered after it was written; tokenise again")
