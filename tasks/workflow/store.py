"""The artifact store: durable results by identity, each committed once, as the last step, with a manifest.

<root>/artifacts/<task>/<identity>/   files + manifest.json     never changed after its commit
<root>/staging/                        files that attempts are writing; nobody reads them
<root>/work/<task>/<identity>/         files that outlive a killed attempt (checkpoints, live records)
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from reducible.data.paths import expanded
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.code_version import code_version

MANIFEST = "manifest.json"

Spec = TypeVar("Spec", bound=BaseModel)


class Store:
    """A folder that every node sees. `make` makes it before something is written; whoever only reads leaves none.

    Raises:
        UserError: the root is empty or a URI, or lies below a file.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise UserError(
                f"--root {root}: an object store is not supported yet; give a folder that every node sees "
                "(a shared file system, or a mounted bucket)"
            )
        if not str(root):
            raise UserError("--root: is empty; give a folder")
        self.root = expanded(str(root)).absolute()
        there = next(path for path in (self.root, *self.root.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise _cannot_be_made(self.root, f"{there} is not a folder")

    def make(self) -> "Store":
        """Makes the folders. Raises UserError if they cannot be made."""
        try:
            for folder in ("artifacts", "staging", "work"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_be_made(self.root, error.strerror or str(error)) from None
        return self

    def artifact(self, name: str, identity: str) -> Path:
        return self.root / "artifacts" / name / identity

    def work(self, name: str, identity: str) -> Path:
        return self.root / "work" / name / identity

    def committed(self, name: str, identity: str) -> bool:
        # The folder appears by one rename, with its manifest in it, so a folder that exists is complete.
        return (self.artifact(name, identity) / MANIFEST).is_file()

    def manifest(self, name: str, identity: str) -> dict[str, Any]:
        return read_manifest(self.artifact(name, identity))

    def manifests(self, name: str) -> Iterator[dict[str, Any]]:
        """The manifests of all artifacts of one task name, newest first."""
        folder = self.root / "artifacts" / name
        found = [read_manifest(path.parent) for path in folder.glob(f"*/{MANIFEST}")]
        return iter(sorted(found, key=lambda manifest: manifest["created"], reverse=True))

    def discard(self, name: str, identity: str) -> None:
        """Removes an artifact, so that its task is run again. The rename hides all of it at once."""
        if self.committed(name, identity):
            trash = self.make().root / "staging" / f"discarded-{identity[:12]}-{uuid.uuid4().hex[:8]}"
            self.artifact(name, identity).rename(trash)
            shutil.rmtree(trash)

    @contextmanager
    def staged(self, name: str, identity: str, label: str, described: dict[str, Any]) -> Iterator[tuple[str, Path]]:
        """Yields (attempt, private folder). The folder is committed if the block succeeds and removed if it fails.

        If two attempts race, the first commit wins and the second is dropped.
        """
        attempt = f"{int(time.time())}-{uuid.uuid4().hex[:8]}"
        staging = self.root / "staging" / f"{name}-{identity[:12]}-{attempt}"
        staging.mkdir(parents=True)
        started = time.time()
        try:
            yield attempt, staging
            write_manifest(staging, described, identity=identity, label=label, attempt=attempt, started=started)
            self._commit(staging, self.artifact(name, identity))
        except OSError as error:
            if self.committed(name, identity):  # another attempt committed first and removed this one's files
                return
            if error.errno == errno.ENOSPC:
                raise UserError(
                    f"{self.root}: no space left on the disk while writing {label}; free some and run again"
                ) from None
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(self.work(name, identity), ignore_errors=True)
        for left in (self.root / "staging").glob(f"{name}-{identity[:12]}-*"):  # by attempts that were killed
            shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def _commit(staging: Path, artifact: Path) -> None:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.rename(artifact)
        except OSError as error:
            # If the folder exists already, another attempt of the same pure function committed it.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        flush(artifact.parent)


def _cannot_be_made(root: Path, reason: str) -> UserError:
    return UserError(f"--root {root}: cannot be made ({reason}); give a folder you can write to")


def write_manifest(
    folder: Path, described: dict[str, Any], *, identity: str, label: str, attempt: str, started: float
) -> None:
    """Lists every file under `folder` with its size and SHA-256. The files are flushed to disk before the manifest."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        flush(path)
        files.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )
    manifest = {
        **described,
        "identity": identity,
        "label": label,
        "files": files,
        "code": code_version(),
        "attempt": attempt,
        "host": socket.gethostname(),
        "created": time.time(),
        "seconds": time.time() - started,
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1))
    flush(path)
    flush(folder)


def remedy(artifact: Path) -> str:
    """What to do about an artifact that differs from what was committed."""
    return f"remove the folder {artifact} and run what made it again"


def read_manifest(artifact: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((artifact / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{artifact}: there is no artifact there ({MANIFEST} is missing)") from None
    except ValueError:
        raise UserError(f"{artifact / MANIFEST}: damaged; {remedy(artifact)}") from None
    return manifest


def read_spec(artifact: Path, kind: type[Spec]) -> Spec:
    """The spec of an artifact's task. A field that was added later has its default, which is the old behaviour.

    Raises:
        UserError: the spec has a field that this code does not know, or lacks one that it needs.
    """
    try:
        return kind.model_validate(read_manifest(artifact)["spec"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{artifact}: made by other code ({where}: {first['msg']}); make it again") from None


def verify(artifact: Path) -> None:
    """Checks every file against the manifest.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    for file in read_manifest(artifact)["files"]:
        path = artifact / file["path"]
        if not path.is_file():
            raise UserError(f"{path}: missing, though the manifest lists it; {remedy(artifact)}")
        if path.stat().st_size != file["size"] or sha256_of(path) != file["sha256"]:
            raise UserError(f"{path}: differs from its manifest (altered or torn); {remedy(artifact)}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Writes what is buffered for the file or folder to the disk before it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
