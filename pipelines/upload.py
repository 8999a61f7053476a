"""What a job carries to a cluster: our packages, and the recipes and data that its command names.

One zip: the packages, and `files`, in which the job runs and which mirrors the folder the command was given in, so that
relative paths mean there what they mean here. The rule for every path that a command or its recipe names:

- inside the folder of --root's storage (the folder that holds --root): it stays where it is, every node sees it;
- relative, and inside the current folder: it travels, whatever .gitignore says; .rayignore refuses it by name;
- absolute otherwise: a path of the cluster's own. Refused if it exists here, where it was surely meant.
"""

import glob
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError

CODE = Path(__file__).resolve().parent.parent  # the folder that holds our packages
PACKAGES = ("data", "models", "tasks", "pipelines")
LIMIT = 100 * 2**20  # bytes of the zip: what Ray's job server takes
RECIPE_PATHS = (("data", "source"), ("data", "validation"), ("data", "tokenizer", "path"))


@dataclass(frozen=True)
class Named:
    """A path as it was written, the field or argument it stands in, and the folder it is relative to."""

    field: str
    text: str
    folder: Path

    @property
    def path(self) -> Path:
        return Path(os.path.normpath(self.folder / Path(self.text).expanduser()))


def pack(archive: Path, files: Iterable[tuple[str, Path]]) -> None:
    """A zip that is the same, byte for byte, for the same contents: Ray uploads once what it has seen before.

    Raises:
        UserError: a file cannot be read, or the zip grows larger than a job can carry.
    """
    sizes: dict[Path, int] = {}
    with zipfile.ZipFile(archive, "w") as target:
        for name, path in sorted(files):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be uploaded ({error.strerror})") from None
            sizes[path] = len(content)
            target.writestr(_entry(name), content, compresslevel=1)
            if archive.stat().st_size > LIMIT:
                break
    if archive.stat().st_size > LIMIT:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"the upload passes {LIMIT >> 20} MiB, the most that a job can carry (largest file: {largest}, "
            f"{sizes[largest] / 2**20:.0f} MiB); put the data on the storage that all nodes see and name it by its "
            "absolute path there"
        )


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def code_files() -> Iterator[tuple[str, Path]]:
    """Our packages as they are now, but for what .gitignore and .rayignore leave out."""
    ignored = _ignored_by(CODE, gitignore=True)
    for package in PACKAGES:
        for path in _files_under(CODE / package):
            if "__pycache__" not in path.parts and not ignored(path):
                yield path.relative_to(CODE).as_posix(), path


def named_files(arguments: Sequence[str], root: Path, here: Path) -> Iterator[tuple[str, Path]]:
    """The recipes and local data behind the arguments of a command that was given in the folder `here`.

    Raises:
        UserError: a path that would not exist on the cluster, or that .rayignore keeps here.
    """
    ignored = _ignored_by(here, gitignore=False)
    storage = root if root.parent == root.parent.parent else root.parent
    found = {path: named for named in _named(arguments, here) for path in _travelling(named, storage, here)}
    for path, named in found.items():
        if ignored(path):
            raise UserError(f"{named.field}: needs {path}, which .rayignore keeps from being uploaded")
        yield f"files/{path.relative_to(here).as_posix()}", path


def _named(arguments: Sequence[str], here: Path) -> Iterator[Named]:
    """Every path that a command names: its arguments that are files, and the data of its recipe."""
    overrides: dict[str, str] = {}
    recipes: list[Path] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if equals and not argument.startswith("-"):
            overrides[option] = value
            continue
        text = value if equals else argument
        if (here / Path(text).expanduser()).is_file():
            yield Named(argument, text, here)
            if Path(text).suffix in (".yaml", ".yml"):
                recipes.append(here / Path(text).expanduser())
    chain = [part for recipe in recipes for part in _with_bases(recipe)]
    for path, content in chain:
        if isinstance(base := content.get("base"), str):
            yield Named("base", base, path.parent)
    for keys in RECIPE_PATHS:
        field = ".".join(keys)
        written = [Named(field, text, path.parent) for path, content in chain if (text := _at(content, keys))]
        if field in overrides:
            written.insert(0, Named(field, overrides[field], here))
        if written and not written[0].text.startswith("builtin:"):
            yield written[0]


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A recipe and its bases, the nearest first. Their mistakes are load_recipe's to explain, not ours."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while path.is_file() and path not in [seen for seen, _ in chain]:
        content = yaml.safe_load(path.read_text())
        chain.append((path, content if isinstance(content, dict) else {}))
        path = Path(os.path.normpath(path.parent / str(chain[-1][1].get("base", ""))))
    return chain


def _at(content: Any, keys: Sequence[str]) -> str | None:
    value = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _travelling(named: Named, storage: Path, here: Path) -> list[Path]:
    """The files behind a path that have to be uploaded, by the rule above."""
    path, found = named.path, _matches(named.path)
    if path.is_relative_to(storage):
        return []
    shared = f"put it on the storage that all nodes see ({storage}) and give its absolute path"
    if Path(named.text).expanduser().is_absolute():
        if not found:
            return []
        raise UserError(
            f"{named.field}: {named.text} is a path of this machine, which the cluster does not see; "
            f"name it relative to the current folder, which uploads it, or {shared}"
        )
    if not path.is_relative_to(here):
        raise UserError(
            f"{named.field}: {named.text} lies outside the current folder ({here}) and is not uploaded; "
            f"submit from a folder that holds it, or {shared}"
        )
    if not found:
        raise UserError(f"{named.field}: {path} does not exist")
    return found


def _matches(path: Path) -> list[Path]:
    """A file, all files of a folder, or those of a glob; hidden ones stay, as data/sources.py leaves them out."""
    if path.is_dir():
        return [file for file in _files_under(path) if not any(p.startswith(".") for p in file.relative_to(path).parts)]
    if path.exists() or path.is_symlink():
        return [path]
    return [match for name in glob.glob(str(path), recursive=True) if not (match := Path(name)).is_dir()]


def _files_under(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def _ignored_by(folder: Path, gitignore: bool) -> Callable[[Path], bool]:
    """Whether .rayignore (and .gitignore) of a folder leave a path in it out, read as Ray reads them."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excludes = get_excludes_from_ignore_files(folder, gitignore, logging.getLogger(__name__))
    return lambda path: any(exclude(path) for exclude in excludes)
