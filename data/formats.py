"""Documents from one file: plain text, JSONL (both also .gz and .zst) or Parquet."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from reducible.data.errors import DataError
from reducible.data.hashes import InputFile, open_regular
from reducible.data.on_error import Damaged, Skipped


class Document(NamedTuple):
    name: str
    text: str


READ_ERRORS = (OSError, EOFError, zlib.error)
WITH_COLUMNS = (".jsonl", ".ndjson", ".parquet")


Documents = Literal["file", "line", "paragraph"]
"""What of a plain text is one document."""
Row = tuple[str, ...] | str
"""The texts of some columns, or what is wrong with them."""


@dataclass(frozen=True)
class Reader:
    """The documents of one file."""

    file: InputFile
    column: str | None
    documents: Documents

    def records(self) -> Iterator[Document | Skipped]:
        """In order, with a Skipped for each record that is no document.

        Raises:
            Damaged: the file as a whole cannot be read. Documents before the damage have been given by then.
        """
        try:
            with opened(self.file) as (plain, name):
                if name.endswith(WITH_COLUMNS):
                    for where, row in rows(self.file, plain, name, (self.column or "text",)):
                        if isinstance(row, str):
                            yield Skipped(self.file.name, f"{where}: ", row)
                        else:
                            yield Document(f"{self.file.name} {where}", *row)
                elif self.column is not None:
                    raise Damaged(f"has no column {self.column!r}: it is neither .jsonl nor .parquet")
                elif self.documents == "file":
                    yield self._document("", plain.read())
                else:
                    yield from self._pieces(plain)
        except READ_ERRORS as error:
            raise Damaged(f"cannot be read ({reason(error)})") from None

    def _document(self, where: str, data: bytes) -> Document | Skipped:
        try:
            return Document(self.file.name + (f" {where}" if where else ""), data.decode())
        except UnicodeDecodeError as error:
            return Skipped(self.file.name, f"{where}: " if where else "", not_utf8(error))

    def _pieces(self, plain: BinaryIO) -> Iterator[Document | Skipped]:
        """Lines, or paragraphs: runs of lines between blank ones. Blank lines are borders, not documents."""
        paragraph: list[bytes] = []
        first = 0
        for number, line in enumerate(plain, 1):
            line = line.rstrip(b"\r\n")
            blank = not line.strip()
            if self.documents == "line":
                if not blank:
                    yield self._document(f"line {number}", line)
            elif not blank:
                first = first if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield self._document(f"line {first}", b"\n".join(paragraph))
                paragraph = []
        if paragraph:
            yield self._document(f"line {first}", b"\n".join(paragraph))


@contextmanager
def opened(file: InputFile) -> Iterator[tuple[BinaryIO, str]]:
    """The stream of plain bytes and the name in lower case, without .gz or .zst.

    Raises:
        DataError: the file has another hash than its listing, so that it has changed since.
    """
    with open_regular(Path(file.path)) as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
            raise DataError(f"{file.path}: changed since it was listed; run the command again")
        stream.seek(0)
        name = file.name.lower()
        if name.endswith(".gz"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=stream)), name.removesuffix(".gz")
        elif name.endswith(".zst"):
            yield cast(BinaryIO, io.BufferedReader(_Zstandard(stream))), name.removesuffix(".zst")
        else:
            yield stream, name


def rows(file: InputFile, plain: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Where each row of JSONL or Parquet stands, and the texts of these columns. Blank lines are no rows."""
    if name.endswith(".parquet"):
        for number, row in enumerate(parquet_texts(plain, Path(file.path), columns), 1):
            yield f"row {number}", row
        return
    for number, line in enumerate(plain, 1):
        if line.strip():
            yield f"line {number}", json_texts(line, columns)


def json_texts(line: bytes, columns: Sequence[str]) -> Row:
    """The texts of these columns of one line of JSONL, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object with {'a column' if len(columns) == 1 else 'columns'} of text"
    for column in columns:
        if column not in row:
            # A JSON escape can put into a name what is not Unicode; a message must be Unicode.
            names = ", ".join(row).encode(errors="backslashreplace").decode()
            return f"no column {column!r} (it has {names or 'none'})"
    return _texts(columns, [row[column] for column in columns])


def parquet_texts(stream: BinaryIO, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The texts of these columns row by row, or what is wrong with a row. Raises DataError if a column is missing."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        for column in columns:
            if column not in names:
                raise DataError(f"{path}: no column {column!r}; set column to one of {', '.join(names)}")
        for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(columns)), use_threads=False):
            for row in zip(*(batch.column(column) for column in columns), strict=True):
                try:
                    values = [value.as_py() for value in row]
                except UnicodeDecodeError:
                    yield "not UTF-8"
                    continue
                yield _texts(columns, values)
    except pyarrow.ArrowException as error:
        raise Damaged(f"not a sound Parquet file ({str(error).splitlines()[0]})") from None


def _texts(columns: Sequence[str], values: Sequence[object]) -> Row:
    texts = []
    for column, value in zip(columns, values, strict=True):
        if not isinstance(value, str):
            return f"column {column!r} holds {type(value).__name__}, not text"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "text with half a surrogate pair, which is not Unicode"
        texts.append(value)
    return tuple(texts)


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start})"


def reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).splitlines()[0].lower()


class _Zstandard(io.RawIOBase):
    """Decompresses .zst. zstandard's own reader accepts a torn file as a short one; this one requires the end."""

    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._stream = stream
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._pending = b""
        self._inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._pending:
            data = self._stream.read(2**16)
            if not data:
                if self._inside:
                    raise EOFError("compressed file ended before its end marker")
                return 0
            while data:
                try:
                    self._pending += self._frame.decompress(data)
                except self._error as error:
                    raise OSError(0, str(error)) from None
                self._inside = not self._frame.eof
                data = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = self._new()
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count
