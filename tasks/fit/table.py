"""A table of any common format as columns of cells: CSV in every dialect, Parquet, JSON lines, runs of MLflow.

What a file is, is read from its content. A cell is a text as it was written, a number, or None if it is empty.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import zstandard

from reducible.data.hashes import open_regular
from reducible.tasks.errors import UserError
from reducible.tasks.fit import mlflow_table

EMPTY = frozenset(("", "-", "--", "–", "—", "na", "n/a", "n.a.", "#n/a", "#nv", "<na>", "nan", "null", "none"))
"""Cells that say nothing, in small letters."""

_PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x28\xb5\x2f\xfd": lambda content: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read(),
}
_MARKS_OF_ORDER = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Table:
    """The cells of every column in order, and where they come from, as a message names it."""

    where: str
    columns: dict[str, list[object]]

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), []))


def read_table(location: str, experiment: str | None = None) -> Table:
    """The table at a path, or the runs of an MLflow experiment at a tracking URI, a folder or a database.

    Raises:
        UserError: it is not there, or is no table; the line names the place.
    """
    if mlflow_table.is_mlflow(location):
        return Table(location, _cells(mlflow_table.runs(location, experiment), location))
    if experiment is not None:
        raise UserError(f"--experiment {experiment}: {location} is a file, not an MLflow tracking URI or folder")
    path = Path(location)
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a table of runs with the columns N, D, C, loss") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder and holds no runs of MLflow: give a table of runs") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}): give a table of runs"
        ) from None
    for magic, unpack in _PACKED.items():
        if content.startswith(magic):
            try:
                content = unpack(content)
            except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
                raise UserError(f"{path} cannot be unpacked ({error})") from None
    if content.startswith(b"PAR1"):
        return Table(str(path), _cells(_parquet(path, content), str(path)))
    if content.startswith(b"PK"):
        raise UserError(f"{path} is a spreadsheet or an archive: save the sheet as CSV")
    text = _text(content)
    if text.lstrip()[:1] in ("{", "["):
        return Table(str(path), _cells(_json(path, text), str(path)))
    return Table(str(path), _cells(_csv(path, text), str(path)))


def empty(cell: object) -> bool:
    """Whether a cell says nothing."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in EMPTY)


def _cells(frame: pandas.DataFrame, where: str) -> dict[str, list[object]]:
    """Columns of plain cells. A row without any stays: whoever reads the table says that it is left out."""
    columns: dict[str, list[object]] = {}
    for i, name in enumerate(frame.columns):
        cells = [_cell(cell) for cell in frame.iloc[:, i].tolist()]
        plain = str(name).strip()
        if cells != columns.setdefault(plain, cells) and plain and any(cell is not None for cell in cells):
            raise UserError(f"{where}: two columns are called {plain} and differ; rename or delete one")
    return columns


def _cell(cell: object) -> object:
    if cell is None or cell is pandas.NA or cell is pandas.NaT or (isinstance(cell, str) and not cell.strip()):
        return None
    return cell


def _text(content: bytes) -> str:
    """Decoded by its byte order mark, else as UTF-16 if its first letters are, as UTF-8, or as Windows writes it."""
    for mark, encoding in _MARKS_OF_ORDER.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    for encoding, zeros in (("utf-16-le", (1, 3)), ("utf-16-be", (0, 2))):
        if [i for i, byte in enumerate(content[:4]) if not byte] == list(zeros):
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _parquet(path: Path, content: bytes) -> pandas.DataFrame:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    columns = {name: table.column(i).to_pylist() for i, name in enumerate(table.column_names)}
    return pandas.DataFrame({name: pandas.Series(cells, dtype=object) for name, cells in columns.items()})


def _json(path: Path, text: str) -> pandas.DataFrame:
    """A list of objects, or an object in each line; objects within become columns such as config.lr."""
    try:
        rows = _loaded(text) if text.lstrip().startswith("[") else [_loaded(line) for line in _lines(text)]
    except ValueError as error:
        try:  # one object, over several lines
            rows = [_loaded(text)]
        except ValueError:
            raise UserError(f"{path} cannot be read as JSON lines ({error})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every line must be an object such as {{'N': 1e6, 'D': 2e7, 'loss': 3.5}}")
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return pandas.DataFrame({name: pandas.Series([row.get(name) for row in flat], dtype=object) for name in names})


def _loaded(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; Python would keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in [other for other, _ in pairs[:i]])
        raise ValueError(f"the key {twice} stands twice in one object")
    return found


def _flat(row: dict[str, object], under: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{under}{key}.") if isinstance(value, dict) else {f"{under}{key}": value}
    return flat


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _csv(path: Path, text: str) -> pandas.DataFrame:
    separator = None
    if stated := re.match(r"sep=(.)\r?\n", text):  # Excel's own line
        separator, text = stated[1], text[stated.end() :]
    while text.startswith("#") and "\n" in text:
        text = text.partition("\n")[2]
    separator = separator or _separator(text)

    def read(**options: Any) -> pandas.DataFrame:
        return pandas.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            skipinitialspace=True,
            keep_default_na=False,
            engine="python" if len(separator) > 1 else "c",
            **options,
        )

    try:
        with warnings.catch_warnings():
            # Rows longer than the header: their numbers would stand under the wrong names.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = read(index_col=False)
    except pandas.errors.ParserWarning:
        raise UserError(f"{path} cannot be read as CSV (rows have more cells than the header)") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({str(error).strip()})") from None
    if frame.isna().to_numpy().any():  # short rows
        frame = frame.fillna("")
    names = read(header=None, nrows=1).iloc[0].fillna("").tolist()  # pandas gives a second column of one name another
    return frame.set_axis(names, axis=1) if len(names) == frame.shape[1] else frame


def _separator(text: str) -> str:
    """What divides the header into most cells, and the rows into as many; blanks if nothing else does."""
    lines = text.splitlines()[:50]

    def cells(separator: str) -> list[int]:
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        try:
            return [len(row) for row in rows if row]
        except csv.Error:
            return [0]

    counts = {separator: cells(separator) for separator in (",", ";", "\t", "|")}
    fits = {separator: many for separator, many in counts.items() if many and many[0] > 1}
    even = {separator: many for separator, many in fits.items() if len(set(many)) == 1}
    best = even or fits
    if best:
        return max(best, key=lambda separator: best[separator][0])
    return r"\s+" if lines and len(lines[0].split()) > 1 else ","
