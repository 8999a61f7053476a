"""The sources of data: a row for each scheme that a location can begin with, the plain path last.

A new source is a file with a Scheme and its row here; docs/data.md shows one.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.data.builtin import Builtin
from reducible.data.errors import DataError
from reducible.data.generated import Generated
from reducible.data.paths import Paths, scheme_like
from reducible.data.scheme import Kind, Scheme

PATHS = Paths()
SCHEMES: list[Scheme] = [Builtin(), Generated(), PATHS]


def scheme_of(location: str) -> tuple[Scheme, str]:
    """The source that a location names, and what follows its prefix."""
    scheme = next(scheme for scheme in SCHEMES if location.startswith(scheme.prefix))
    return scheme, location.removeprefix(scheme.prefix)


def files(location: str, kind: Kind, cache: Path | None) -> list[tuple[str, Path]]:
    """(name, path) of every file behind the location. Raises DataError if there is none or the scheme is unknown."""
    wrong = refusal(location)
    if wrong is not None:
        raise DataError(f"{location!r} is not allowed; it must be {wrong}")
    scheme, rest = scheme_of(location)
    return list(scheme.files(rest, kind, cache))


def settings(location: str, kind: Kind) -> Mapping[str, Any]:
    """Keys of the data section that this source sets if a recipe leaves them out."""
    scheme, rest = scheme_of(location)
    return scheme.settings(rest, kind)


def travels(location: str) -> bool:
    """Whether a job has to bring along the files behind the location."""
    return scheme_of(location)[0].travels


def seen_from(folder: Path, location: str) -> str:
    """The location, written in a file of this folder, in a form that means the same in every folder.

    Paths become absolute. What looks like an unknown scheme stays as it is, and `refusal` names it.
    """
    scheme, rest = scheme_of(location)
    return scheme.seen_from(folder, rest)


def refusal(location: str) -> str | None:
    """What a location must be instead, if its scheme is unknown or no location can name it; None if it is allowed."""
    scheme, rest = scheme_of(location)
    wrong = scheme.refusal(rest)
    if wrong is None or scheme is not PATHS:
        return wrong
    known = [row.prefix for row in SCHEMES if row.prefix and row.refusal("") is None]
    near = difflib.get_close_matches(str(scheme_like(location)), known, n=1)
    return f"{wrong}; known: {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")


def shown(location: str) -> str:
    """A location as people read it."""
    scheme, rest = scheme_of(location)
    return scheme.shown(rest)
