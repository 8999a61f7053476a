"""Families from outside this package: found by address, what their code is, and where it goes wrong."""

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from reducible.models.contract import Family
from reducible.models.loss import BrokenContract
from reducible.models.other_libraries import first_line

GROUP = "reducible.families"
"""Of entry points: a package that declares one there makes its family known under a short name."""
ADDRESS = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")
EXAMPLE = "my_package.my_module:FAMILY"
FOLDER = "REDUCIBLE_FOLDER"
"""The variable that tells a worker the folder where the command was given: the worker runs in another one."""
OURS = "reducible"


def entry_points() -> dict[str, str]:
    """Addresses by name, of the packages that are installed."""
    return {point.name: point.value.partition("[")[0].strip() for point in metadata.entry_points(group=GROUP)}


def imported(address: str) -> tuple[Family, str]:
    """The family at `module:name`, and the identity of its code (`code_of`).

    Raises:
        ValueError: one line that says why not, and what to do.
    """
    if ADDRESS.fullmatch(address) is None:
        raise ValueError(f"model.family: {address!r} must be an address such as {EXAMPLE}: module, colon, name")
    module_name, _, attribute = address.partition(":")
    find_in_current_folder(module_name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ValueError(f"model.family: {address} cannot be imported: {_why(error, module_name)}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"model.family: {module_name} has no {attribute}{_instead(vars(module))}")
    found = getattr(module, attribute)
    if not isinstance(found, Family):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        wanted = f"a Family (models/contract.py){_instead(vars(module))}"
        raise ValueError(f"model.family: {address} is {what}, and must be {wanted}")
    return found, code_of(module_name)


def _why(error: BaseException, module_name: str) -> str:
    """An error of an import in one line: a module that is not there, or what the code did and where."""
    top = module_name.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if error.name == top:
            here = os.environ.get(FOLDER) or os.getcwd()
            return f"no {top} in {here} or on Python's path; change into the folder that holds it, or install it"
        if f"{module_name}.".startswith(f"{error.name}."):
            return first_line(error)
        return f"it needs {error.name}, which is not installed here"
    return said_by(error, module_name)


def _instead(names: dict[str, object]) -> str:
    families = [name for name, value in names.items() if isinstance(value, Family)]
    return f"; the module has {', '.join(families)}" if families else ""


def said_by(error: BaseException, module_name: str) -> str:
    """An error that the code of a family raised: its type, what it says, and the last line of that code on its way."""
    said = first_line(error)
    kind = type(error).__name__
    if isinstance(error, SyntaxError):  # it says its file and line itself
        return f"{kind}: {said}"
    files = {file.resolve() for _, file in code_files(module_name)}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() in files]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return (kind if said == kind else f"{kind}: {said}") + where


@contextmanager
def blaming(family: Family, what: str) -> Iterator[None]:
    """Makes an error of a family from outside one line: what was asked of it, what went wrong, and where.

    A ValueError that begins with the key of a recipe is such a line already. A family of this package is left alone, as
    its errors are faults of this package.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("model."):
            raise
        module_name = module_of(family.name) if family.code is not None else None
        if module_name is None:
            raise
        if isinstance(error, BrokenContract):
            raise ValueError(f"model.family: {family.name}: {error} (docs/models.md, A new family)") from error
        raise ValueError(f"model.family: {family.name}: {what} failed: {said_by(error, module_name)}") from error


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
    """The Python files of a module's whole package, by their path from where it is imported, and of what it imports
    from beside it: modules and packages in the same folder that belong to no installed distribution."""
    waiting, seen = [module_name.partition(".")[0]], {OURS}
    while waiting:
        top = waiting.pop()
        if top in seen:
            continue
        seen.add(top)
        for path, file in _package_files(top):
            yield path, file
            waiting += [name for name in _imports(file) if _beside(name, file.parents[path.count("/")])]


def _package_files(top: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(top)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin is not None and spec.has_location:
            yield Path(spec.origin).name, Path(spec.origin)
        return
    for folder in map(Path, spec.submodule_search_locations):
        for file in sorted(folder.rglob("*.py")):
            yield (Path(top) / file.relative_to(folder)).as_posix(), file


def _imports(file: Path) -> list[str]:
    """Top names of the absolute imports of a file, sorted; none if it is not Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return sorted(names)


def _beside(name: str, folder: Path) -> bool:
    """Whether the module of that name is imported from this folder, and is no part of Python or of an installation."""
    if name == OURS or name in sys.stdlib_module_names or "site-packages" in folder.parts:
        return False
    if not (folder / f"{name}.py").is_file() and not (folder / name).is_dir():
        return False
    first = next(_package_files(name), None)
    return first is not None and first[1].is_relative_to(folder)
