"""Files, folders and globs: what a location without a scheme names."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from reducible.data.errors import DataError
from reducible.data.scheme import Kind, Scheme


class Paths(Scheme):
    prefix = ""
    travels = True

    def files(self, rest: str, kind: Kind, cache: Path | None) -> Sequence[tuple[str, Path]]:
        """Leaves out hidden files and folders, as a shell does, and nothing else."""
        path = expanded(rest)
        if os.path.isdir(path):
            found = sorted(_walk(path, path))
        elif os.path.lexists(path):
            found = [(path.name, path)]
        elif glob.has_magic(rest):
            root = _fixed_part(path)
            matches = (Path(match) for match in glob.glob(str(path), recursive=True))
            found = [(match.relative_to(root).as_posix(), match) for match in matches if not match.is_dir()]
        else:
            raise DataError(f"{rest} does not exist; give a file, a folder, a glob or a builtin: corpus")
        if not found:
            raise DataError(f"{rest} holds no files")
        return found

    def seen_from(self, folder: Path, rest: str) -> str:
        path = folder / expanded(rest)
        return rest if not rest or (scheme_like(rest) and not matches(path)) else str(path.absolute())

    def refusal(self, rest: str) -> str | None:
        if "\0" in rest:
            return "a path, and no path holds a NUL byte"
        scheme = scheme_like(rest)
        if scheme is None or matches(expanded(rest)):
            return None
        if PureWindowsPath(rest).drive:
            return "a path of this machine; drive letters belong to Windows"
        name = scheme if scheme.isprintable() else repr(scheme)
        return f"a path (no file has that name) or begin with a scheme that is known ({name} is not)"


def expanded(location: str) -> Path:
    """The path with ~ replaced by the home folder, if there is one."""
    try:
        return Path(location).expanduser()
    except RuntimeError:  # ~name, and no user has that name
        return Path(location)


def scheme_like(location: str) -> str | None:
    """The word before the first colon, with its : or ://; None if there is no colon or a folder's name holds it.

    A file whose name has a colon can always be written ./NAME.
    """
    word, colon, rest = location.partition(":")
    if not word or not colon or "/" in word or (os.name == "nt" and len(word) == 1):
        return None
    return word + ("://" if rest.startswith("//") else ":")


def matches(path: Path) -> bool:
    """Whether the file or folder exists, or a file matches the glob. A link that leads nowhere exists."""
    name = str(path)
    if "\0" in name:
        return False
    return os.path.lexists(name) or (glob.has_magic(name) and any(glob.iglob(name, recursive=True)))


def _walk(folder: Path, root: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Follows linked folders, except into a folder that the walk is already inside."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path.relative_to(root).as_posix(), path
        elif path.resolve() not in above:
            yield from _walk(path, root, above)


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first wildcard: names are relative to it."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
