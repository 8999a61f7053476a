"""Input files in specs: by their content. Where a machine has them is execution."""

from collections.abc import Iterable, Mapping

from reducible.data.hashes import InputFile
from reducible.tasks.workflow.frozen import Frozen


class FileSpec(Frozen):
    """An input by content; its place is execution."""

    name: str
    size: int
    sha256: str


def by_content(files: Iterable[InputFile]) -> tuple[FileSpec, ...]:
    return tuple(FileSpec(name=file.name, size=file.size, sha256=file.sha256) for file in files)


def paths_of(files: Iterable[InputFile]) -> dict[str, str]:
    """Where this machine has each, by name."""
    return {file.name: file.path for file in files}


def weight_of(files: Iterable[InputFile]) -> float:
    """The work of a task that reads the files: their bytes."""
    return float(sum(file.size for file in files))


def on_this_machine(files: Iterable[FileSpec], paths: Mapping[str, str]) -> list[InputFile]:
    """The files with their paths; a generated one has none."""
    return [InputFile(file.name, paths.get(file.name, ""), file.size, file.sha256) for file in files]
