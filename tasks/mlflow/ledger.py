"""What MLflow still has to be told: one small file for each artifact that leaves a record, under <root>/mlflow.

It keeps what the artifact itself cannot know, because it is not identity (which sweeps use it, how its run ended), and
what each tracking server already has, so that a finished store is recognised without importing MLflow. Nothing here is
precious: without these files everything is looked up in MLflow again by its tag `reducible.artifact`.
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
"""How a run ended, and MLflow's word for it; before its end an entry is "running"."""


@dataclass
class Entry:
    """One artifact (or pipeline) that has, or will have, its run.

    folders are where its record may lie, the final one last, relative to the store's root where they lie under it.
    """

    identity: str
    folders: list[str]
    tags: dict[str, str] = field(default_factory=dict)
    sweeps: list[str] = field(default_factory=list)
    status: str = "running"
    error: str = ""
    attempt: str = ""
    """Which attempt committed the artifact, once one has: a task made afresh gets a fresh run."""
    recorded: dict[str, dict[str, str]] = field(default_factory=dict)
    """By tracking server: {"run": id, "state": stamp} of what it was last told."""

    def stamp(self) -> str:
        """Changes when MLflow has to hear of something. The record itself never changes after its commit."""
        told = [self.tags, self.sweeps, self.status, self.error, self.attempt]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def complete(self, server: str) -> bool:
        return self.status in ENDED and self.recorded.get(server, {}).get("state") == self.stamp()

    def record(self, root: Path) -> Path | None:
        """Where the record lies now: in the artifact once it is committed, in the task's work folder before."""
        found = [root / folder for folder in self.folders if (root / folder / "describe.json").is_file()]
        return found[-1] if found else None

    def settle(self, root: Path) -> None:
        """Finished, where its artifact was committed; a training that diverged is a result, but failed in MLflow."""
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
    """None where the file is missing or torn."""
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
            return None  # written by another version: everything in it can be found again

    def write(self, entry: Entry) -> None:
        """Replaced in one go; sweeps that another driver added in the meantime are kept."""
        known = self.read(entry.identity)
        if known is not None:
            entry.sweeps = sorted({*known.sweeps, *entry.sweeps})
        path = self.path(entry.identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        part.write_text(json.dumps(asdict(entry)))
        part.replace(path)

    def entries(self) -> Iterator[Entry]:
        """All there are, artifacts with a record but without an entry included (a deleted ledger, a copied store)."""
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
        """What this server was told is gone with its database."""
        for path in (self.folder / "runs").glob("*.json"):
            entry = self.read(path.stem)
            if entry is not None and entry.recorded.pop(server, None) is not None:
                self.write(entry)

    def acquire(self, identity: str) -> int | None:
        """The right to write the run of that identity, kept until the descriptor is closed (or its process dies).

        None: another driver that is alive has it.
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
