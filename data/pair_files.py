"""Pairs of texts from files: TSV, JSONL, Parquet, or two parallel files."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from reducible.data import sources
from reducible.data.errors import DataError
from reducible.data.formats import READ_ERRORS, WITH_COLUMNS, not_utf8, opened, reason, rows
from reducible.data.generated_pairs import GeneratedPairs
from reducible.data.hashes import InputFile
from reducible.data.on_error import Damaged, OnError, Skipped, usable

_MARK = b"\xef\xbb\xbf"  # the byte order mark, which some editors put before UTF-8


class Pair(NamedTuple):
    name: str
    """File and line."""
    source: str
    target: str


@dataclass(frozen=True)
class PairSource:
    """One location (file, folder, glob, builtin:docstrings), two parallel files, or `generated`.

    `columns` are two names (of a TSV's first line, a JSONL's keys, a Parquet file's columns) or, for TSV without a
    first line of names, two numbers from 1. Without them a TSV has exactly two columns, and JSONL and Parquet have
    `source` and `target`.
    """

    locations: tuple[str, ...] = ()
    columns: tuple[str, str] | tuple[int, int] | None = None
    lowercase: bool = False
    on_error: OnError = "refuse"
    generated: GeneratedPairs | None = None
    field: str = "data.source"
    """The key of the recipe that holds the locations."""

    def __post_init__(self) -> None:
        if bool(self.locations) == bool(self.generated):
            raise DataError("source: give either files of pairs or generated: {...}")
        if len(self.locations) > 2:
            raise DataError(f"source: {len(self.locations)} files; give one file of pairs, or two parallel files")

    @property
    def parallel(self) -> bool:
        return len(self.locations) == 2


@dataclass
class LeftOut:
    """What reading left out."""

    empty: int = 0
    """Lines that are blank in both parallel files."""
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

    def said(self) -> str:
        """For an error about missing pairs: how many were skipped and why the first was; empty if none was."""
        if not self.skipped:
            return ""
        first = self.skipped[0]
        return f" ({len(self.skipped):,} skipped; the first: {first})"


def listing(source: PairSource, cache: Path | None = None) -> list[InputFile]:
    """Every input file, hashed. Parallel files are called source/NAME and target/NAME."""
    if source.generated is not None:
        return [InputFile(name, "", size, digest) for name, size, digest in source.generated.files()]
    if not source.parallel:
        return sources.files_of(source.locations[0], "pairs", source.on_error, cache, source.field)
    files = []
    for side, location in zip(("source", "target"), source.locations, strict=True):
        found = sources.files_of(location, "text", source.on_error, cache, source.field)
        if len(found) != 1:
            raise DataError(f"{source.field}: {location} is {len(found)} files; parallel text is one file a side")
        file = found[0]
        if file.name.lower().endswith(WITH_COLUMNS):
            raise DataError(f"{source.field}: {location}: a parallel file is plain text, one sentence a line")
        files.append(InputFile(f"{side}/{file.name}", file.path, file.size, file.sha256))
    return files


def read_pairs(files: Sequence[InputFile], source: PairSource, left_out: LeftOut) -> Iterator[Pair]:
    """The pairs in order, without white space at the ends of each text, lower-cased if the source says so.

    Raises DataError naming file and line of a record that is not a pair: a wrong number of columns, an empty side,
    bytes that are not UTF-8. With on_error: skip, such a line is left out and named in `left_out`, and so is a damaged
    file as a whole. Parallel files of unequal length and a file that changed since it was listed always raise.
    """
    if source.generated is not None:
        for file in files:
            yield from (Pair(*item) for item in source.generated.pairs_of(file.name))
        return
    for group in [list(files)] if source.parallel else [[file] for file in files]:
        for pair in usable(group, partial(_records, group, source), source.on_error, left_out.skipped):
            if pair is None:
                left_out.empty += 1
            else:
                yield pair


def _records(group: list[InputFile], source: PairSource) -> Iterator[Pair | Skipped | None]:
    """Pairs in order; for a bad record a Skipped with the reason, and None for a blank one."""
    try:
        texts = _parallel(*group) if source.parallel else _one_file(group[0], source.columns)
        for item in texts:
            yield item if isinstance(item, Skipped) else _pair(*item, lowercase=source.lowercase)
    except READ_ERRORS as error:
        raise Damaged(f"cannot be read ({reason(error)})") from None


class _Raw(NamedTuple):
    file: str
    where: str
    source: str
    target: str


def as_read(text: str, lowercase: bool) -> str:
    """A side as it is trained on. What a model is asked later must be read the same way."""
    return text.strip().lower() if lowercase else text.strip()


def _pair(file: str, where: str, source: str, target: str, lowercase: bool) -> Pair | Skipped | None:
    source, target = as_read(source, lowercase), as_read(target, lowercase)
    if not source and not target:
        return None
    if not source or not target:
        return Skipped(file, f"{where}: ", f"the {'target' if source else 'source'} is empty")
    return Pair(f"{file} {where}", source, target)


def _parallel(one: InputFile, other: InputFile) -> Iterator[_Raw | Skipped]:
    with opened(one) as (left, _), opened(other) as (right, _):
        lines = [0, 0]
        for number, pair in enumerate(zip_longest(left, right), 1):
            for side, line in enumerate(pair):
                lines[side] += line is not None
            if None in pair:
                continue  # the shorter file has ended: the lines of the longer are only counted
            texts = [_text(file.name, number, line) for file, line in zip((one, other), pair, strict=True)]
            wrong = [text for text in texts if isinstance(text, Skipped)]
            yield wrong[0] if wrong else _Raw(one.name, f"line {number}", str(texts[0]), str(texts[1]))
        if lines[0] != lines[1]:
            raise DataError(
                f"{one.path} has {lines[0]:,} lines, {other.path} {lines[1]:,}: in parallel files line n of one "
                "belongs to line n of the other"
            )


def _one_file(file: InputFile, columns: tuple[str, str] | tuple[int, int] | None) -> Iterator[_Raw | Skipped]:
    with opened(file) as (plain, name):
        if name.endswith(WITH_COLUMNS):
            for where, row in rows(file, plain, name, _names(file, columns)):
                yield Skipped(file.name, f"{where}: ", row) if isinstance(row, str) else _Raw(file.name, where, *row)
        elif name.endswith(".csv"):
            raise DataError(f"{file.path}: CSV is not read; write the pairs as TSV (one tab a line) or JSONL")
        else:
            yield from _tsv(file, plain, columns)


def _names(file: InputFile, columns: tuple[str, str] | tuple[int, int] | None) -> tuple[str, str]:
    source, target = columns or ("source", "target")
    if isinstance(source, int) or isinstance(target, int):
        raise DataError(f"data.columns: {file.path} names its columns; give two names instead of numbers")
    return source, target


def _tsv(
    file: InputFile, plain: Iterable[bytes], columns: tuple[str, str] | tuple[int, int] | None
) -> Iterator[_Raw | Skipped]:
    """One pair a line, columns between tabs; nothing is quoted or escaped. Blank lines are ignored."""
    places: tuple[int, int] = (0, 1)
    width: int | None = 2
    named = columns is not None and isinstance(columns[0], str)
    if columns is not None and not named:
        places, width = (int(columns[0]) - 1, int(columns[1]) - 1), None
    for number, line in enumerate(plain, 1):
        text = _text(file.name, number, line)
        if isinstance(text, Skipped):
            yield text
            continue
        if not text.strip():
            continue
        cells = text.split("\t")
        if named:
            assert columns is not None
            for name in columns:
                if cells.count(str(name)) != 1:
                    raise DataError(
                        f"{file.path}: line {number} names {'no' if name not in cells else 'more than one'} column "
                        f"{name!r} (it has {', '.join(cells)}); "
                        "data.columns are two of them, or two numbers if no line names the columns"
                    )
            places, width, named = (cells.index(str(columns[0])), cells.index(str(columns[1]))), len(cells), False
            continue
        if width is not None and len(cells) != width or len(cells) <= max(places):
            right = (
                f"{width if width is not None else 'at least ' + str(max(places) + 1)}"
                f"{' (source, tab, target)' if columns is None else ''}"
            )
            choose = "; data.columns chooses two" if columns is None and len(cells) > 2 else ""
            yield Skipped(
                file.name,
                f"line {number}: ",
                f"{len(cells)} column{'s' if len(cells) > 1 else ''} instead of {right}{choose}",
            )
            continue
        yield _Raw(file.name, f"line {number}", cells[places[0]], cells[places[1]])


def _text(name: str, number: int, line: bytes) -> str | Skipped:
    """A line without its end."""
    if b"\0" in line:
        return Skipped(name, f"line {number}: ", "holds a NUL byte, which no text does; is it UTF-16? Save it as UTF-8")
    try:
        return (line.removeprefix(_MARK) if number == 1 else line).rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        return Skipped(name, f"line {number}: ", not_utf8(error))
