"""A source of data as docs/data.md tells people to write one: toy://N, a table of N rows for any kind of data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reducible.data import schemes
from reducible.data.errors import DataError
from reducible.data.scheme import Kind, Scheme

ROWS = {
    "text": ("txt", lambda n: f"the number {n} and {n * n} are of line {n}"),
    "pairs": ("tsv", lambda n: f"number {n}\tZahl {n}"),
    "series": ("csv", lambda n: f"{n},{n * n % 7}" if n else "step,value"),
}


class Toy(Scheme):
    prefix = "toy://"

    def files(self, rest: str, kind: Kind, cache: Path | None) -> Sequence[tuple[str, Path]]:
        if not rest.isdigit():
            raise DataError(f"data.source: {self.shown(rest)}: how many rows? Such as toy://100")
        assert cache is not None
        suffix, row = ROWS[kind]
        path = cache / f"toy-{rest}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row(n)}\n" for n in range(int(rest))))
        return [(path.name, path)]

    def settings(self, rest: str, kind: Kind) -> Mapping[str, Any]:
        kinds: dict[str, dict[str, Any]] = {
            "text": {"documents": "line"},
            "pairs": {"split_by": "target"},
            "series": {"columns": ("value",), "time": "step"},
        }
        return kinds[kind]


@contextmanager
def registered() -> Iterator[None]:
    """As the row in data/schemes.py would do for good."""
    toy = Toy()
    schemes.SCHEMES.insert(0, toy)
    try:
        yield
    finally:
        schemes.SCHEMES.remove(toy)
