"""Numbers as people write them: 1.5e9, 1,5e9, 645,497, 1 290 994, 7B, 410M; a column has one decimal mark.

Whether 1,234 is a little more than one or more than a thousand cannot be told from one cell. So a mark is kept if every
cell of the column is a number under it; if both are, the columns of the table that can be told apart decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from reducible.tasks.errors import UserError

Mark = Literal["point", "comma"]
MARKS: tuple[Mark, ...] = ("point", "comma")
POWERS = {
    **dict.fromkeys(("k", "thousand"), 3),
    **dict.fromkeys(("m", "mn", "million", "millions"), 6),
    **dict.fromkeys(("b", "bn", "g", "billion", "billions"), 9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 12),
}
"""Powers of ten that a count may end in, in small letters."""

_SHAPE = re.compile(
    r"(?P<sign>[+-]?)(?P<body>\d[\d.,'’_\s]*|[.,]\d+)(?:[eE](?P<power>[+-]?\d+))?\s*(?P<suffix>[A-Za-z]*)"
)
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,'’_\s])\d{3})(?:\1\d{3})*")


def number(text: str, mark: Mark = "point", count: bool = False) -> float | None:
    """The number, or None if it is none under this decimal mark. Only a `count` may end in k, M, B, G or T."""
    text = text.strip()
    if mark == "point" or not re.search(r"[\d.]", text):
        try:
            return float(text)
        except ValueError:
            pass
    shape = _SHAPE.fullmatch(text)
    if shape is None or (shape["suffix"] and not (count and shape["suffix"].lower() in POWERS)):
        return None
    whole, _, fraction = shape["body"].strip().partition("." if mark == "point" else ",")
    if fraction and not fraction.isdigit():
        return None
    if not whole.isdigit() and whole:
        if shape["power"] or not _GROUPED.fullmatch(whole):
            return None
        whole = re.sub(r"\D", "", whole)
    power = int(shape["power"] or 0) + POWERS.get(shape["suffix"].lower(), 0)
    return float(f"{shape['sign']}{whole or 0}.{fraction or 0}e{power}")  # one rounding, as of a number typed in full


def has_suffix(text: str) -> bool:
    """Whether a count ends in k, M, B or another power of ten."""
    shape = _SHAPE.fullmatch(text.strip())
    return shape is not None and shape["suffix"].lower() in POWERS


def columns_of_numbers(
    columns: Mapping[str, Sequence[object]], counts: Sequence[str], given: Mark | None, where: str
) -> dict[str, list[float]]:
    """Every column as numbers; None becomes nan. `counts` may have suffixes; `given` is the mark if it is known.

    Raises:
        UserError: a cell is no number, or a column's decimal mark cannot be told.
    """
    marks = MARKS if given is None else (given,)
    found = {name: _readings(cells, marks, name in counts) for name, cells in columns.items()}
    for name, readings in found.items():
        if not readings:
            raise _not_a_number(columns[name], name, name in counts, marks, where)
    told = {mark for readings in found.values() if len(readings) == 1 for mark in readings}
    read = {}
    for name, readings in found.items():
        if len(readings) == 1 or _same(*readings.values()):
            read[name] = next(iter(readings.values()))
        elif len(told) == 1:
            read[name] = readings[next(iter(told))]
        elif not any("," in str(cell) for cell in columns[name]):
            read[name] = readings["point"]  # 3.214 alone is what every program writes for three and a fifth
        else:
            cell = next(str(cell) for cell in columns[name] if "," in str(cell)).strip()
            values = " or ".join(f"{number(cell, mark, name in counts):g}" for mark in MARKS)
            raise UserError(f"{where}, column {name}: {cell} is {values}; add --decimal point or --decimal comma")
    return read


def _readings(cells: Sequence[object], marks: Sequence[Mark], count: bool) -> dict[Mark, list[float]]:
    """The column's numbers under each mark that all its cells allow."""
    found: dict[Mark, list[float]] = {}
    for mark in marks:
        values = [_value(cell, mark, count) for cell in cells]
        if None not in values:
            found[mark] = [math.nan if value is None else value for value in values]
    return found


def _value(cell: object, mark: Mark, count: bool) -> float | None:
    if cell is None:
        return math.nan
    if isinstance(cell, bool):
        return None
    if isinstance(cell, str):
        return number(cell, mark, count)
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a list, a date
        return None


def _same(first: list[float], second: list[float]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(first, second, strict=True))


def _not_a_number(cells: Sequence[object], name: str, count: bool, marks: Sequence[Mark], where: str) -> UserError:
    worst = {mark: [i for i, cell in enumerate(cells) if _value(cell, mark, count) is None] for mark in marks}
    mark = min(marks, key=lambda mark: len(worst[mark]))
    row = worst[mark][0]
    text = str(cells[row]).strip()
    at = f"{where}, row {row + 2}, column {name}"  # row 1 is the header, as editors count
    if any(number(text, other, count) is not None for other in MARKS):
        return UserError(f"{at}: {text!r} has another decimal mark than the rest of the column")
    return UserError(f"{at}: {text!r} is not a number; write it like 1.5e9")
