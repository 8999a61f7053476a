"""What MLflow has yet to be told: one small file under <root>/mlflow for each artifact that has a record.

A file holds what the artifact cannot know because it is no part of its identity (which sweeps use it, how its run
ended), and what each tracking server already has. So a finished store is recognised without importing MLflow. If these
files are lost, everything is looked up in MLflow again by its tag `reducible.artifact`.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ENDED = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
"""How a run ended, and MLflow's word for it. Until then an entry is "running"."""


@dataclass
class Entry:
    """One artifact (or pipeline) that has, or will have, a run.

    folders are the places where its record may be, the final one last; relative to the store's root if under it.
    """

    identity: str
    folders: list[str]
    tags: dict[str, str] = field(default_factory=dict)
    sweeps: list[str] = field(default_factory=list)
    status: str = "running"
    error: str = ""
    attempt: str = ""
    """The attempt that committed the artifact, once there is one. A task that is made afresh gets a new run."""
    recorded: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each tracking server was last told: {"run": id, "state": stamp}."""

    def stamp(self) -> str:
        """Changes if MLflow has to be told something. The record itself never changes after its commit."""
        told = [self.tags, self.sweeps, self.status, self.error, self.attempt]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def complete(self, server: str) -> bool:
        return self.status in ENDED and self.recorded.get(server, {}).get("state") == self.stamp()

    def record(self, root: Path) -> Path | None:
        """Where the record is now: in the task's work folder, or in the artifact once that is committed."""
        found = [root / folder for folder in self.folders if (root / folder / "describe.json").is_file()]
        return found[-1] if found else None

    def settle(self, root: Path) -> None:
        """Marks the entry finished if its artifact is committed. A training that diverged is marked failed."""
        artifact = (root / self.folders[-1]).parent
        manifest = read_json(artifact / "manifest.json")
        if manifest is None:
            return
        self.attempt = str(manifest.get("attempt", ""))
        result = read_json(artifact / "result.json") or {}
        if result.get("status") == "diverged":
            self.status, self.error = "failed", f"diverged: {result.get('reason') or 'loss exploded'}"
        else:
            self.status, self.error = "finished", ""


def read_json(path: Path) -> dict[str, Any] | None:
    """The content, or None if the file is missing or torn."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content


class Ledger:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "mlflow"

    def path(self, identity: str) -> Path:
        return self.folder / "runs" / f"{identity}.json"

    def read(self, identity: str) -> Entry | None:
        content = read_json(self.path(identity))
        try:
            return None if content is None else Entry(**content)
        except TypeError:
            return None  # written by another version; everything in it can be looked up again

    def write(self, entry: Entry) -> None:
        """Replaces the entry atomically; keeps the sweeps that another driver added in the meantime."""
        known = self.read(entry.identity)
        if known is not None:
            entry.sweeps = sorted({*known.sweeps, *entry.sweeps})
        path = self.path(entry.identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        part.write_text(json.dumps(asdict(entry)))
        part.replace(path)

    def entries(self) -> Iterator[Entry]:
        """All entries, and one for each artifact that has a record but no entry (a deleted ledger, a copied store)."""
        known = set()
        for path in sorted((self.folder / "runs").glob("*.json")):
            if (entry := self.read(path.stem)) is not None:
                known.add(entry.identity)
                yield entry
        for described in sorted(self.root.glob("artifacts/*/*/record/describe.json")):
            artifact = described.parent.parent
            if artifact.name not in known and (artifact / "manifest.json").is_file():
                record = str(described.parent.relative_to(self.root))
                yield Entry(artifact.name, [record])

    def forget(self, server: str) -> None:
        """Forgets what this server was told, because its database is gone."""
        for path in (self.folder / "runs").glob("*.json"):
            entry = self.read(path.stem)
            if entry is not None and entry.recorded.pop(server, None) is not None:
                self.write(entry)

    def acquire(self, identity: str) -> int | None:
        """Takes the right to write the run of that identity, held until the descriptor is closed or its process dies.

        None: another running driver has it.
        """
        lock = self.folder / "locks" / identity
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
