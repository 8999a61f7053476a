"""Numeric series from files: CSV and TSV (also .gz), Parquet and piano rolls as JSON.

A missing value is an empty cell or one of MISSING; it becomes NaN. Everything else has to be a finite number.
"""

import csv
import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from reducible.data.errors import DataError

MISSING = {"", "na", "nan", "n/a", "null", "none"}
"""The contents of a cell, in lower case, that mean a missing value."""

KEYS, LOWEST_KEY = 88, 21
"""A piano's keys as MIDI notes: 21 to 108."""

ROLL_SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class NumericSeries:
    """One series: its name, its values (T, C) float64 with NaN where missing, and its split if the file gives one."""

    name: str
    values: np.ndarray
    split: str | None = None


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns. Without `names`, every column except those of time and series is a channel."""

    names: tuple[str, ...] = ()
    time: str | None = None
    series: str | None = None

    def chosen(self, header: Sequence[str], path: Path) -> list[str]:
        """The value columns of a file with this header. Raises DataError naming a column that is missing."""
        for key, name in (("columns", self.names), ("time", self.time), ("series", self.series)):
            for one in (name,) if isinstance(name, str) else name or ():
                if one not in header:
                    raise DataError(f"data.{key}: {path} has no column {one!r}; it has {', '.join(header)}")
        values = list(self.names) or [name for name in header if name not in (self.time, self.series)]
        if not values:
            raise DataError(f"{path}: has no column of values besides time and series")
        return values


def header_of(path: Path) -> list[str]:
    """The names of the columns. Reads nothing else."""
    if _is_parquet(path):
        try:
            return list(pyarrow.parquet.read_schema(path).names)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None
    with _text(path) as stream:
        return _header(csv.reader(stream, delimiter=_delimiter(path)), path)


def channel_names(path: Path, columns: Columns) -> list[str]:
    """The names of a file's channels, from its header."""
    if is_roll(path):
        return [f"note-{LOWEST_KEY + key}" for key in range(KEYS)]
    return columns.chosen(header_of(path), path)


def is_roll(path: Path) -> bool:
    return path.name.lower().endswith((".json", ".json.gz"))


def read_rolls(path: Path) -> Iterator[NumericSeries]:
    """Piano rolls with their splits: {"train": [piece, ...], "valid": ..., "test": ...}, a piece a list of steps, a
    step the list of MIDI notes that sound in it. Values are 0 and 1, one channel a key."""
    try:
        with _text(path) as stream:
            content = json.load(stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({_first_line(error)})") from None
    if not isinstance(content, dict) or not content or not set(content) <= set(ROLL_SPLITS):
        raise DataError(f'{path}: piano rolls are one object of lists {{"train": ..., "valid": ..., "test": ...}}')
    for key, pieces in content.items():
        if not isinstance(pieces, list):
            raise DataError(f"{path}: {key}: not a list of pieces")
        for number, piece in enumerate(pieces):
            yield NumericSeries(f"{key}-{number}", _roll(piece, f"{path}: {key}[{number}]"), ROLL_SPLITS[key])


def _roll(piece: Any, where: str) -> np.ndarray:
    if not isinstance(piece, list):
        raise DataError(f"{where}: a piece is a list of steps")
    values = np.zeros((len(piece), KEYS))
    for step, notes in enumerate(piece):
        for note in notes if isinstance(notes, list) else [None]:
            if not isinstance(note, int) or not LOWEST_KEY <= note < LOWEST_KEY + KEYS:
                what = "a step is a list of MIDI notes" if note is None else f"{note!r} is not a MIDI note of a piano"
                raise DataError(f"{where}: step {step}: {what} (whole numbers from {LOWEST_KEY} to 108)")
            values[step, note - LOWEST_KEY] = 1.0
    return values


def read_table(path: Path, name: str, columns: Columns) -> Iterator[NumericSeries]:
    """The series of one CSV, TSV or Parquet file: one, named as the file, or one for each value of the series column.

    Raises:
        DataError: a cell is not a number or time, or a time is out of order. The line names file, line (Parquet: row)
            and column.
    """
    table = _Table(path, columns)
    if _is_parquet(path):
        table.parquet()
    else:
        table.lines()
    for key, rows in table.rows.items():
        yield NumericSeries(key or name, np.array(rows, np.float64).reshape(len(rows), len(table.names)))


class _Table:
    """Rows of values by series, in the order of the file."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.names: list[str] = []
        self.rows: dict[str, list[list[float]]] = {}
        self.last: dict[str, float] = {}

    def lines(self) -> None:
        with _text(self.path) as stream:
            reader = csv.reader(stream, delimiter=_delimiter(self.path))
            header = _header(reader, self.path)
            self.names = self.columns.chosen(header, self.path)
            places = [header.index(name) for name in self.names]
            time, series = (
                None if name is None else header.index(name) for name in (self.columns.time, self.columns.series)
            )
            try:
                for cells in reader:
                    line = reader.line_num
                    if not cells and len(header) > 1:
                        continue  # a blank line
                    cells = cells or [""]
                    if len(cells) != len(header):
                        raise DataError(
                            f"{self.path}: line {line}: {len(cells)} cells under {len(header)} column names"
                        )
                    self.add(
                        f"line {line}",
                        [cells[place] for place in places],
                        None if time is None else cells[time],
                        None if series is None else cells[series],
                    )
            except (csv.Error, UnicodeDecodeError, EOFError, OSError) as error:
                raise DataError(f"{self.path}: line {reader.line_num}: {_first_line(error)}") from None

    def parquet(self) -> None:
        self.names = self.columns.chosen(header_of(self.path), self.path)
        wanted = [*self.names, *(name for name in (self.columns.time, self.columns.series) if name is not None)]
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            row = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(wanted))):
                cells = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in wanted}
                for place in range(batch.num_rows):
                    row += 1
                    self.add(
                        f"row {row}",
                        [cells[name][place] for name in self.names],
                        None if self.columns.time is None else cells[self.columns.time][place],
                        None if self.columns.series is None else cells[self.columns.series][place],
                    )
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({_first_line(error)})") from None

    def add(self, where: str, cells: list[Any], time: Any, series: Any) -> None:
        key = "" if self.columns.series is None else str(series).strip()
        if self.columns.series is not None and (series is None or not key):
            raise self.error(where, self.columns.series, "names no series")
        if self.columns.time is not None:
            moment = _moment(time)
            if moment is None:
                raise self.error(where, self.columns.time, f"{time!r} is not a number, date or time (ISO 8601)")
            if key in self.last and not moment > self.last[key]:
                raise self.error(where, self.columns.time, f"{time!r} is not after the step before; sort by time")
            self.last[key] = moment
        row = []
        for name, cell in zip(self.names, cells, strict=True):
            value = _number(cell)
            if value is None:
                raise self.error(
                    where, name, f"{cell!r} is not a finite number; choose data.columns, or leave the cell empty"
                )
            row.append(value)
        self.rows.setdefault(key, []).append(row)

    def error(self, where: str, column: str, what: str) -> DataError:
        return DataError(f"{self.path}: {where}, column {column!r}: {what}")


def _number(cell: Any) -> float | None:
    """NaN for a missing value, None if the cell is not a number."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) or (math.isnan(value) and not isinstance(cell, str)) else None


def _moment(cell: Any) -> float | None:
    """A number that grows with time, from a number (20240131 is one), a date or an ISO 8601 string."""
    if isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            try:
                cell = datetime.fromisoformat(cell.strip())
            except ValueError:
                return None
    if isinstance(cell, datetime):
        return (cell if cell.tzinfo else cell.replace(tzinfo=UTC)).timestamp()
    if isinstance(cell, date):
        return float(cell.toordinal())
    return float(cell) if isinstance(cell, int | float) else None


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except (csv.Error, UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(f"{path}: line 1: {_first_line(error)}") from None
    if not any(header):
        raise DataError(f"{path}: line 1: does not name the columns")
    if all(_number(name) is not None for name in header):
        raise DataError(f"{path}: line 1: {', '.join(header)[:60]} are numbers; the first line has to name the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: line 1: two columns are called {twice[0]!r}")
    return header


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith((".parquet", ".pq"))


def _delimiter(path: Path) -> str:
    return "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","


def _text(path: Path) -> io.TextIOBase:
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
