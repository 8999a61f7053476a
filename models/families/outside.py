"""Families from outside this package: how they are found, and how their code is identified."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from reducible.models.contract import Family
from reducible.models.other_libraries import first_line

GROUP = "reducible.families"
"""The group of entry points. A package that declares one in it makes its family known under a short name."""
FOLDER = "REDUCIBLE_FOLDER"
"""The variable that tells a worker the folder where the command was given: the worker runs in another one."""


def entry_points() -> dict[str, str]:
    """The addresses that installed packages declare, by short name."""
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


def imported(address: str) -> tuple[Family, str]:
    """The family at `module:name`, and the identity of its code (`code_of`).

    Raises:
        ValueError: it cannot be imported, or is not a Family. One line says why.
    """
    module_name, _, attribute = address.partition(":")
    find_in_current_folder(module_name)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a module can raise anything when it is imported
        raise ValueError(f"model.family: {address} cannot be imported: {first_line(error)}") from None
    if not isinstance(found, Family):
        raise ValueError(f"model.family: {address} is a {type(found).__name__}, not a Family (models/contract.py)")
    return found, code_of(module_name)


def find_in_current_folder(module_name: str) -> None:
    """If Python finds no such package, adds the folder where the command was given to the end of its path."""
    top = module_name.partition(".")[0]
    here = os.environ.get(FOLDER) or os.getcwd()
    if here not in sys.path and top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(here)
        importlib.invalidate_caches()


def code_of(module_name: str) -> str:
    """`distribution version` if the package is installed and its files do not change, otherwise their SHA-256."""
    if (requirement := installed(module_name)) is not None:
        return requirement
    digest = hashlib.sha256()
    for path, file in code_files(module_name):
        digest.update(path.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return f"sha256 {digest.hexdigest()}"


def installed(module_name: str) -> str | None:
    """`distribution version`; None for a package in the current folder or an editable one, whose files may change."""
    some = next((file for _, file in code_files(module_name)), None)
    for name in metadata.packages_distributions().get(module_name.partition(".")[0], ()):
        distribution = metadata.distribution(name)
        if some is not None and any(Path(str(distribution.locate_file(f))) == some for f in distribution.files or ()):
            return f"{name} {distribution.version}"
    return None


def module_of(name: str) -> str | None:
    """The module that defines a family from outside, by the family's address or short name; None if it is unknown."""
    address = name if ":" in name else entry_points().get(name, "")
    module_name = address.partition(":")[0]
    if not module_name:
        return None
    find_in_current_folder(module_name)
    return module_name


def travelling_files(name: str) -> Iterator[tuple[str, Path]]:
    """The files that another machine needs on its path to find the family: its code, and the entry point's metadata
    if the name is a short one."""
    module_name = module_of(name)
    if module_name is None:
        return
    yield from code_files(module_name)
    for distribution in metadata.distributions() if ":" not in name else ():
        if any(point.group == GROUP and point.name == name for point in distribution.entry_points):
            for file in distribution.files or ():
                if file.parent.suffix == ".dist-info" and file.name in ("METADATA", "entry_points.txt"):
                    yield file.as_posix(), Path(str(distribution.locate_file(file)))


def code_files(module_name: str) -> Iterator[tuple[str, Path]]:
    """The Python files of the whole package that holds a module, by their paths relative to the import path."""
    top = module_name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin is not None:
            yield Path(spec.origin).name, Path(spec.origin)
        return
    for folder in map(Path, spec.submodule_search_locations):
        for file in sorted(folder.rglob("*.py")):
            yield (Path(top) / file.relative_to(folder)).as_posix(), file
