"""The Python files of the standard library, and those of the packages that the pins install."""

import importlib.metadata
import sysconfig
from pathlib import Path

from reducible.data.errors import DataError

# The large pure-Python parts of the pinned environment, about 200 MB. They are named one by one, so that another
# installed package does not change the corpus.
PACKAGES = (
    "fonttools",
    "matplotlib",
    "mlflow",
    "networkx",
    "numpy",
    "pandas",
    "ray",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "sympy",
    "torch",
)
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def _stdlib() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    names = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return [(name.as_posix(), path) for name, path in names if not _NOT_LIBRARY.intersection(name.parts)]


def _packages() -> list[tuple[str, Path]]:
    found: dict[str, Path] = {}
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package)
        except importlib.metadata.PackageNotFoundError:
            raise DataError(f"data.source: builtin:packages needs {package}; install the pinned requirements") from None
        for file in files or ():
            # Installers also list scripts outside site-packages, and files that a user has deleted since.
            if file.suffix == ".py" and ".." not in file.parts and (path := Path(str(file.locate()))).is_file():
                found[file.as_posix()] = path
    return list(found.items())


CORPORA = {"stdlib": _stdlib, "packages": _packages}


def paths(name: str) -> list[tuple[str, Path]]:
    """(name, path) of every file of a built-in corpus."""
    return CORPORA[name]()
