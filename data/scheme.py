"""The interface of a source of data: a row of data/schemes.py, recognised by how its locations begin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Kind = str
"""A kind of data, as `data.kind` of a recipe says it."""


class Scheme:
    """One source of data. A location is `prefix` followed by the `rest` that every method takes."""

    prefix: str
    """How its locations begin, such as builtin: or hf://."""
    travels = False
    """Whether the files lie where a person put them, so that a job has to bring them along."""

    def files(self, rest: str, kind: Kind, cache: Path | None) -> Sequence[tuple[str, Path]]:
        """(name, path) of every file that holds data of this kind; names are the same on every machine.

        `cache` is a folder for what is fetched or made once.

        Raises:
            DataError: there is none; one line that says what would be right.
        """
        raise NotImplementedError

    def settings(self, rest: str, kind: Kind) -> Mapping[str, Any]:
        """Keys of the data section that the source sets if a recipe leaves them out."""
        return {}

    def seen_from(self, folder: Path, rest: str) -> str:
        """The location, written in a file of this folder, in a form that means the same in every folder."""
        return self.shown(rest)

    def refusal(self, rest: str) -> str | None:
        """What the location must be instead, as far as can be said without reading; None if it is allowed."""
        return None

    def shown(self, rest: str) -> str:
        """The location as people read it."""
        return self.prefix + rest
