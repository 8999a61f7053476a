"""What a job uploads to a cluster: the package, and the recipes and data that its command names.

The upload is one zip with the package and the folder `files`. The job runs in `files`, which mirrors the folder where
the command was given, so that relative paths mean the same there. The rule for every path in a command or its recipe:

- relative: it is uploaded, whatever .gitignore says. It must be in the current folder, and .rayignore can refuse it;
- absolute: it is not uploaded, and means the same path on the cluster. If it exists on this machine it is refused,
  because this one was surely meant, unless it is beside --root, on the storage that all nodes see.
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

import reducible
from reducible.data import schemes
from reducible.data.paths import expanded
from reducible.pipelines.dataset.kinds import data_paths
from reducible.pipelines.find import find
from reducible.pipelines.recipe import yaml_text
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store, read_manifest

PACKAGE = Path(reducible.__file__).parent
LIMIT = 100 * 2**20  # bytes of the zip that Ray's job server accepts


@dataclass(frozen=True)
class Named:
    """A path, the field or argument that names it, and the text of it: relative to the current folder, or absolute."""

    field: str
    text: str
    written: Path


def pack(archive: Path, files: Iterable[tuple[str, Path]]) -> None:
    """Writes a zip that is the same, byte for byte, for the same contents, so that Ray uploads it only once.

    Raises:
        UserError: a file cannot be read, or the zip grows larger than a job can carry.
    """
    with zipfile.ZipFile(archive, "w") as target:
        for name, path in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            try:
                with path.open("rb") as content, target.open(entry, "w", force_zip64=True) as packed:
                    while archive.stat().st_size <= LIMIT and (block := content.read(2**20)):
                        packed.write(block)
            except OSError as error:
                raise UserError(f"{path}: cannot be uploaded ({error.strerror})") from None
            if archive.stat().st_size > LIMIT:
                raise UserError(
                    f"the upload exceeds {LIMIT >> 20} MiB, the most that a job can carry, at {path} "
                    f"({path.stat().st_size / 2**20:.0f} MiB); put the data on storage that all nodes see and name it "
                    "by its absolute path there"
                )


def code_files() -> Iterator[tuple[str, Path]]:
    """The package reducible as it is now, without what .gitignore and .rayignore leave out."""
    ignored = _ignored_by(PACKAGE.parent, gitignore=True)
    for entry in sorted(PACKAGE.iterdir()):
        files = _files_under(entry.resolve()) if entry.is_dir() else [entry]  # folders of a checkout are links
        for path in files:
            inside = path.relative_to(entry.resolve()) if entry.is_dir() else Path()
            if "__pycache__" not in path.parts and not ignored(path):
                yield (Path(PACKAGE.name) / entry.name / inside).as_posix(), path


def named_files(arguments: Sequence[str], root: Path, here: Path) -> Iterator[tuple[str, Path]]:
    """The recipes and local data behind the arguments of a command that was given in the folder `here`.

    Raises:
        UserError: a path would not exist on the cluster, or .rayignore leaves it out.
    """
    ignored = _ignored_by(here, gitignore=False)
    storage = root if root.parent == root.parent.parent else root.parent
    found = {path: named for named in _named(arguments, here) for path in _travelling(named, storage, here)}
    for path, named in found.items():
        if ignored(path):
            raise UserError(f"{named.field}: needs {path}, which .rayignore keeps from being uploaded")
        yield f"files/{path.relative_to(here).as_posix()}", path


def family_files(arguments: Sequence[str], here: Path, root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """The code of the families outside this package that a command needs, for the top of the zip.

    Of an installed distribution nothing travels: the cluster must have it (`needed_distributions`).
    """
    from reducible.models.families.outside import installed, module_of, travelling_files

    for name in outside_families(arguments, here, root):
        module = module_of(name)
        if module is not None and installed(module) is None:
            yield from travelling_files(name)


def needed_distributions(arguments: Sequence[str], here: Path, root: Path | None = None) -> list[str]:
    """`NAME VERSION` of each distribution that a family of the command is from."""
    from reducible.models.families.outside import installed, module_of

    modules = [module_of(name) for name in outside_families(arguments, here, root)]
    return sorted({found for module in modules if module is not None and (found := installed(module)) is not None})


def registered_files() -> Iterator[tuple[str, Path]]:
    """The code of the families outside this package that this process has found, except of installed distributions."""
    from reducible.models.families.outside import installed, module_of, travelling_files
    from reducible.models.families.registry import FAMILIES

    for name, kind in FAMILIES.items():
        module = module_of(name) if kind.code is not None else None
        if module is not None and installed(module) is None:
            yield from travelling_files(name)


def outside_families(arguments: Sequence[str], here: Path, root: Path | None) -> list[str]:
    """Families that are not of this package: those that the arguments and their recipes name, and those of the
    trainings that they name, if the store can be seen from here."""
    from reducible.models.families.outside import entry_points

    texts = [value for argument in arguments for key, _, value in [argument.partition("=")] if key == "model.family"]
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")):
            for _, content in _with_bases(expanded(argument), here):
                texts += [*_families(content), *_trained(content, root)]
    texts += [text for argument in arguments for text in _trained({"finetune": {"base": argument}}, root)]
    return sorted({text for text in texts if ":" in text or text in entry_points()})


def _trained(content: Any, root: Path | None) -> list[str]:
    """The family of the training that a recipe fine-tunes."""
    if root is None or not root.is_dir():
        return []
    store = Store(root)
    families = []
    for base in _at(content, ["finetune", "base"]):
        try:
            families.append(str(read_manifest(find(store, "train", base))["spec"]["family"]))
        except (UserError, KeyError, TypeError):  # it is no training's name, and the command says so itself
            continue
    return families


def _families(content: Any) -> Iterator[str]:
    """The values of the keys `family` anywhere in a recipe."""
    if isinstance(content, dict):
        yield from _texts(content.get("family"))
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _families(value)


def _named(arguments: Sequence[str], here: Path) -> Iterator[Named]:
    """Every path that a command names: its arguments that are files, and the data of its recipe."""
    overrides: dict[str, str] = {}
    recipes: list[Path] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before == "--data" or option == "--data" and equals:
            overrides["data.source"] = argument if before == "--data" else value
            continue
        if equals and not argument.startswith("-"):
            overrides[option] = value
            continue
        text = value if equals else argument
        written = expanded(text)
        if (here / written).is_file():
            yield Named(argument, text, written)
            if written.suffix in (".yaml", ".yml"):
                recipes.append(written)
    chain = [part for recipe in recipes for part in _with_bases(recipe, here)]
    for path, content in chain:
        for base in _at(content, ["base"]):
            yield Named("base", base, path.parent / base)
    for field in data_paths():
        places = [(_texts(_value(overrides[field])), Path())] if field in overrides else []
        places += [(found, path.parent) for path, content in chain if (found := _at(content, field.split(".")))]
        texts, folder = places[0] if places else ([], Path())
        for text in texts:
            wrong = schemes.refusal(schemes.seen_from(here / folder, text))
            if wrong is not None:
                raise UserError(f"{field}: {text!r} is not allowed; it must be {wrong}")
            if schemes.travels(text):
                yield Named(field, text, folder / expanded(text))


def _with_bases(path: Path, here: Path) -> list[tuple[Path, Any]]:
    """A recipe and its bases, the nearest first. load_recipe explains mistakes in them, not this function."""
    chain: list[tuple[Path, Any]] = []
    while (here / path).is_file() and path not in [seen for seen, _ in chain]:
        chain.append((path, yaml_text.load((here / path).read_text())))
        path = Path(os.path.normpath(path.parent / next(iter(_at(chain[-1][1], ["base"])), "")))
    return chain


def _at(content: Any, keys: Sequence[str]) -> list[str]:
    """The path, or the paths of a list, at this place of a recipe."""
    value = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return _texts(value)


def _value(text: str) -> Any:
    """An override's value as load_recipe reads it. A value that is not YAML, such as *.md, is text."""
    try:
        return yaml_text.load(text)
    except yaml.YAMLError:
        return text


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _travelling(named: Named, storage: Path, here: Path) -> list[Path]:
    """The files behind a path that have to be uploaded, by the rule above."""
    path = Path(os.path.normpath(here / named.written))
    found = _matches(path)
    shared = f"put it on the storage that all nodes see ({storage}) and give its absolute path"
    if named.written.is_absolute():
        if found and not path.is_relative_to(storage):
            raise UserError(
                f"{named.field}: {named.text} is a path of this machine, which the cluster does not see; "
                f"name it relative to the current folder, which uploads it, or {shared}"
            )
        return []
    if not path.is_relative_to(here):
        raise UserError(
            f"{named.field}: {named.text} is outside the current folder ({here}) and is not uploaded; "
            f"submit from a folder that holds it, or {shared}"
        )
    if not found:
        raise UserError(f"{named.field}: {path} does not exist")
    return found


def _matches(path: Path) -> list[Path]:
    """A file, all files of a folder, or those of a glob, without hidden ones, which data/sources.py leaves out too."""
    if path.is_dir():
        return [file for file in _files_under(path) if not any(p.startswith(".") for p in file.relative_to(path).parts)]
    if path.exists() or path.is_symlink():
        return [path]
    return [match for name in glob.glob(str(path), recursive=True) if not (match := Path(name)).is_dir()]


def _files_under(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def _ignored_by(folder: Path, gitignore: bool) -> Callable[[Path], bool]:
    """A test whether .rayignore (and .gitignore) of a folder leave out a path in it, read as Ray reads them."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excludes = get_excludes_from_ignore_files(folder, gitignore, logging.getLogger(__name__))
    return lambda path: any(exclude(path) for exclude in excludes)
