"""Input that cannot be used: refused with an error that names it, or skipped and named (`on_error` of a recipe)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from reducible.data.errors import DataError
from reducible.data.hashes import InputFile

OnError = Literal["refuse", "skip"]
T = TypeVar("T")


@dataclass(frozen=True)
class Skipped:
    """An input that was left out: a file, or (`where` not empty) one record of it."""

    file: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}{self.reason}"


class Damaged(Exception):
    """The file as a whole cannot be read: torn, corrupt, unreadable."""


def usable(
    files: Sequence[InputFile],
    records: Callable[[], Iterator[T | Skipped]],
    on_error: OnError,
    skipped: list[Skipped],
) -> Iterator[T]:
    """The records of these files, which are read together: one file, or two parallel ones.

    refuse: the first record that is none raises DataError, and so does damage. skip: such a record is left out and
    named in `skipped`; damaged files are left out as a whole, whatever could be read of them. So everything is read
    once before anything is used: the checksum of a .gz stands at its end.
    """
    if on_error == "skip" and (whole := _unsound(files, records)) is not None:
        skipped.append(whole)
        return
    try:
        for item in records():
            if not isinstance(item, Skipped):
                yield item
            elif on_error == "skip":
                skipped.append(item)
            else:
                place = next(file.path for file in files if file.name == item.file)
                raise DataError(f"{place}: {item.where}{item.reason}; repair it, or set on_error: skip")
    except Damaged as error:
        raise DataError(f"{files[0].path}: {error}; repair or remove it, or set on_error: skip") from None


def _unsound(files: Sequence[InputFile], records: Callable[[], Iterator[object]]) -> Skipped | None:
    """What is wrong with the files as a whole; None if they are sound."""
    for file in files:
        if not file.sha256:
            return Skipped(file.name, "", "could not be read")
    try:
        for _ in records():
            pass
    except Damaged as error:
        return Skipped(files[0].name, "", str(error))
    return None
