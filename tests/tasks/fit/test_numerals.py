"""Numbers in columns: what was written comes back, and what may mean two things is asked."""

import math
import random

import pytest

from reducible.tasks.errors import UserError
from reducible.tasks.fit.numerals import columns_of_numbers, number


def read(*cells: object, count: bool = False, given: str | None = None, **others: list[object]) -> list[float]:
    columns = {"x": list(cells), **others}
    return columns_of_numbers(columns, ["x"] if count else [], given, "runs.csv")["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "mark", "value"),
    [
        ("1.5e9", "point", 1.5e9),
        ("1,5e9", "comma", 1.5e9),
        ("645,497", "point", 645497.0),
        ("1.290.994,5", "comma", 1290994.5),
        ("1 290 994", "point", 1290994.0),
        ("1\u202f290\u00a0994", "point", None),  # two kinds of blanks in one number
        ("1\u202f290\u202f994", "comma", 1290994.0),
        ("1'290'994", "point", 1290994.0),
        ("1_290_994", "point", 1290994.0),
        (".5", "point", 0.5),
        (",5", "comma", 0.5),
        ("-3,25", "comma", -3.25),
        ("0,123", "point", None),  # no group of thousands begins with 0
        ("12,34", "point", None),
        ("1.234.56", "comma", None),
        ("1,234e3", "point", None),
        ("inf", "comma", math.inf),
        ("ten", "point", None),
        ("", "point", None),
    ],
)
def test_one_cell(text: str, mark: str, value: float | None) -> None:
    assert number(text, mark) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("410M", 410e6),
        ("7b", 7e9),
        ("1.3 B", 1.3e9),
        ("32k", 32e3),
        ("2T", 2e12),
        ("1.5 trillion", 1.5e12),
        ("3G", 3e9),
    ],
)
def test_suffixes_belong_to_counts(text: str, value: float) -> None:
    assert number(text, count=True) == value
    assert number(text) is None


def test_every_way_of_writing_gives_the_same_number() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.choice([rng.randrange(10**12), round(10 ** rng.uniform(-6, 12), rng.randrange(6))])
        plain = repr(value)
        assert number(plain) == float(value)
        assert number(plain.replace(".", ","), "comma") == float(value)
        if "e" not in plain:
            grouped = f"{value:,}"
            assert number(grouped) == float(value)
            assert number(grouped.translate(str.maketrans(",.", ".,")), "comma") == float(value)
            assert number(grouped.replace(",", "\u202f")) == float(value)
        digits = repr(round(rng.uniform(1, 999), 3))
        assert number(f"{digits}M", count=True) == float(f"{digits}e6")  # rounded once


def test_the_whole_column_decides() -> None:
    assert read("1,234", "2,5") == [1.234, 2.5]
    assert read("1,234", "1,290,994") == [1234.0, 1290994.0]
    assert read("1,234", "3.5") == [1234.0, 3.5]
    assert read("3.214", "2.987") == [3.214, 2.987]  # a point alone is a decimal mark


def test_other_columns_of_the_table_decide_for_one_that_cannot() -> None:
    assert read("1,234", y=["7,32432"]) == [1.234]
    assert read("1,234", y=["7.32432"]) == [1234.0]
    assert read("645.497", y=["7,32432"]) == [645497.0]


def test_what_stays_open_is_asked_and_answered() -> None:
    with pytest.raises(UserError, match=r"runs.csv, column x: 1,234 is 1234 or 1.234; add --decimal point or"):
        read("1,234", "2,345", None)
    with pytest.raises(UserError, match="--decimal"):  # the others contradict each other
        read("1,234", y=["7,32432"], z=["7.32432"])
    assert read("1,234", given="comma") == [1.234]
    assert read("1,234", given="point") == [1234.0]


def test_what_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"runs.csv, row 3, column x: 'many' is not a number; write it like 1.5e9"):
        read("1", "many", "1,5")
    with pytest.raises(UserError, match=r"row 4, column x: '1.290.994,5' has another decimal mark than the rest"):
        read("1.5", "2.5", "1.290.994,5")
    with pytest.raises(UserError, match="is not a number"):
        read([1, 2])


def test_cells_that_are_numbers_already_stay() -> None:
    assert read(3, 2.5, "7") == [3.0, 2.5, 7.0]
    assert math.isnan(read(None, 1)[0])
