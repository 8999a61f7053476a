"""builtin: corpora that are already on the machine, in Python's standard library and in the pinned packages."""

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from reducible.data import docstrings, python_files
from reducible.data.errors import DataError
from reducible.data.scheme import Kind, Scheme


@dataclass(frozen=True)
class Corpus:
    files: Callable[[Path | None], Sequence[tuple[str, Path]]]
    """Returns (name, path) of its files; takes the folder for what is made once."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def _statsmodels(name: str, cache: Path | None) -> Sequence[tuple[str, Path]]:
    """The CSV of a series, found without importing statsmodels."""
    found = importlib.util.find_spec("statsmodels")
    if found is None or found.origin is None:
        raise DataError(f"builtin:{name} needs statsmodels; install the pinned requirements")
    return [(f"{name}.csv", Path(found.origin).parent / "datasets" / name / f"{name}.csv")]


def _docstrings(name: str, suffix: Literal["txt", "tsv"], cache: Path | None) -> Sequence[tuple[str, Path]]:
    return [docstrings.corpus(name, suffix, cache)]


def _python(name: str, cache: Path | None) -> Sequence[tuple[str, Path]]:
    return python_files.paths(name)


CORPORA: Mapping[Kind, Mapping[str, Corpus]] = {
    "text": {
        **{name: Corpus(partial(_python, name)) for name in python_files.CORPORA},
        **{name: Corpus(partial(_docstrings, name, "txt"), {"documents": "line"}) for name in docstrings.CORPORA},
    },
    # Hundreds of functions share a name, and some share a docstring: either on both sides gives the answer away.
    "pairs": {name: Corpus(partial(_docstrings, name, "tsv"), {"split_by": "both"}) for name in docstrings.CORPORA},
    "series": {
        name: Corpus(partial(_statsmodels, name), {"columns": (column,), "time": time})
        for name, column, time in (
            ("nile", "volume", "year"),
            ("sunspots", "SUNACTIVITY", "YEAR"),
            ("co2", "co2", "date"),
        )
    },
}
"""The corpora of each kind of data, by name."""


class Builtin(Scheme):
    prefix = "builtin:"

    def files(self, rest: str, kind: Kind, cache: Path | None) -> Sequence[tuple[str, Path]]:
        known = CORPORA.get(kind, {})
        if rest in known:
            return known[rest].files(cache)
        if not known:
            raise DataError(f"{self.shown(rest)} holds no {kind}; no built-in corpus does")
        *others, last = map(self.shown, known)
        near = difflib.get_close_matches(rest, known, n=1)
        raise DataError(
            f"{self.shown(rest)} holds no {kind}; {', '.join(others)} and {last} do"
            + (f"; did you mean {self.shown(near[0])}?" if near else "")
        )

    def settings(self, rest: str, kind: Kind) -> Mapping[str, Any]:
        known = CORPORA.get(kind, {})
        return known[rest].settings if rest in known else {}
