"""Writes the run of one ledger entry: finds or makes it, keeps it up to date, ends it."""

import fcntl
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from reducible.tasks.mlflow.ledger import ENDED, Entry, Ledger, read_json
from reducible.tasks.mlflow.runs import RunWriter, create, find
from reducible.tasks.mlflow.served_model import log_model
from reducible.tasks.mlflow.view import link, member_tag, publish
from reducible.tasks.workflow.code_version import code_version

_ATTEMPT = "mlflow.reducible.attempt"  # set when all of an artifact was sent; MLflow hides tags with this prefix
_SPEAKS_FOR_SWEEP = ("fit", "prediction", "report", "sweep")  # for these kinds only the newest run of a sweep counts


class Open:
    """A run that is being written: what MLflow has of it, and which of the record's small files were sent."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self._told: dict[str, int] = {}

    def changed(self, path: Path) -> bool:
        """Whether the file is new or was replaced since the last question."""
        time_ns = path.stat().st_mtime_ns if path.is_file() else 0
        if self._told.get(path.name, 0) == time_ns:
            return False
        self._told[path.name] = time_ns
        return True


class Projector:
    """One tracking server: its client, its experiment (made here if missing), the runs in it."""

    def __init__(self, root: Path, tracking_uri: str, experiment: str, ledger: Ledger, server: str) -> None:
        self.root = root
        self.experiment = experiment
        self.server = server
        self.ledger = ledger
        self._published: set[str | None] = set()
        local = tracking_uri.startswith("sqlite:///")
        self.client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
        # If several processes create the same SQLite file, some of them fail; so one at a time.
        with (ledger.folder / "database.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.client.get_experiment_by_name(experiment)
            place = (root / "mlflow-artifacts").as_uri() if local else None
            self.experiment_id = (
                known.experiment_id if known else self.client.create_experiment(experiment, artifact_location=place)
            )

    def alive(self) -> bool:
        """Whether the server answers at all: distinguishes a bad record from a server that is away."""
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:  # whatever MLflow raises means that it does not answer
            return False
        return True

    def project(self, entry: Entry, open_run: Open | None, record: Path, ended: bool) -> Open:
        """Sends what is new in the record. If `ended`, also sends what is sent only once, and how the run ended."""
        described = read_json(record / "describe.json") or {}
        manifest = read_json(record.parent / "manifest.json") or {}
        kind = str(described.get("kind", ""))
        _take_over(entry, described)
        if open_run is None:
            open_run = Open(RunWriter(self.client, self._found_or_made(entry, described, manifest)))
        writer = open_run.writer
        if open_run.changed(record / "describe.json"):
            writer.describe(described)
        writer.set_tags(_tags(entry, kind, manifest))
        for folder in entry.folders:
            writer.follow(self.root / folder)
        if open_run.changed(record / "note.md"):
            writer.note(self._note(kind, entry, writer.id, (record / "note.md").read_text()))
        if ended:
            self._end(writer, entry, kind, record, manifest)
        else:
            writer.running()
        if not {None, *entry.sweeps} <= self._published:
            publish(self.client, self.experiment_id, entry.sweeps)
            self._published |= {None, *entry.sweeps}
        return open_run

    def _found_or_made(self, entry: Entry, described: Mapping[str, Any], manifest: Mapping[str, Any]) -> Any:
        """The run of the artifact. A run of an earlier attempt that `--fresh` replaced is deleted."""
        run = find(self.client, self.experiment_id, entry.identity)
        if run is not None and run.data.tags.get(_ATTEMPT, entry.attempt) != entry.attempt:
            self.client.delete_run(run.info.run_id)
            run = None
        if run is None:
            started = None
            if manifest:
                started = int(1000 * (manifest["created"] - manifest.get("seconds", 0)))
            name = str(described.get("name") or manifest.get("label") or entry.identity[:12])
            run = create(self.client, self.experiment_id, entry.identity, name, started)
            # A driver on another machine may have made one in the meantime; then the first one stays.
            first = find(self.client, self.experiment_id, entry.identity)
            if first is not None and first.info.run_id != run.info.run_id:
                self.client.delete_run(run.info.run_id)
                run = first
        return self.client.get_run(run.info.run_id)

    def _note(self, kind: str, entry: Entry, run_id: str, note: str) -> str:
        """The note. In a run that stands for a sweep it also links to the report and to the view of its runs."""
        if kind not in ("report", "sweep") or not entry.sweeps:
            return note
        note = re.sub(r"\A\s*#+ .*\n+", "", note)
        links = [f"[Report](#/experiments/{self.experiment_id}/runs/{run_id}/artifacts/report.html)"]
        links += [f"[Runs of {sweep}]({link('', self.experiment_id, sweep).lstrip('/')})" for sweep in entry.sweeps]
        return " · ".join(links) + "\n\n" + note

    def _end(self, writer: RunWriter, entry: Entry, kind: str, record: Path, manifest: Mapping[str, Any]) -> None:
        """Sends final numbers, artifacts and the model: once if the artifact is committed, else every time."""
        ended_ms = int(1000 * manifest["created"]) if manifest else int(time.time() * 1000)
        if not entry.attempt or writer.tags.get(_ATTEMPT) != entry.attempt:
            result = read_json(record.parent / "result.json") if manifest else None
            if result is not None:
                # A trunk has not cooled down, so its loss does not belong in the charts that show the law.
                charted = entry.status == "finished" and entry.tags.get("role") != "trunk"
                writer.final(result, ended_ms, chart=charted)
            writer.artifacts(record)
            alone = not entry.sweeps or "pipeline" in entry.tags  # not one of the many cells of a sweep
            if kind == "train" and entry.status == "finished" and alone:
                log_model(writer, self.root, record.parent, entry.tags.get("pipeline") or self.experiment)
            if entry.attempt:
                writer.set_tags({_ATTEMPT: entry.attempt})
        writer.ended(ENDED[entry.status], ended_ms)
        if kind in _SPEAKS_FOR_SWEEP:
            self._supersede(entry, kind)
        entry.recorded[self.server] = {"run": writer.id, "state": entry.stamp()}

    def _supersede(self, entry: Entry, kind: str) -> None:
        """Marks all but the newest run that stands for a sweep: the sweep has grown since the others."""
        for sweep in entry.sweeps:
            same = f"tags.kind = '{kind}' AND tags.`{member_tag(sweep)}` IS NOT NULL"
            if family := entry.tags.get("family"):  # each family of a sweep has a fit of its own
                same += f" AND tags.family = '{family}'"
            runs = self.client.search_runs([self.experiment_id], same)
            *older, newest = sorted(runs, key=lambda run: run.info.start_time)
            for run in older:
                self.client.set_tag(run.info.run_id, "superseded", newest.info.run_id)


def _take_over(entry: Entry, described: Mapping[str, Any]) -> None:
    """Adds the tags in the task's record: they are all that is known if the ledger was lost or the store copied."""
    tags = dict(described.get("tags", {}))
    if sweep := tags.pop("sweep", None):
        entry.sweeps = sorted({*entry.sweeps, sweep})
    entry.tags = tags | entry.tags


def _tags(entry: Entry, kind: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    code = str(manifest.get("code") or code_version())
    status = "diverged" if entry.error.startswith("diverged") else entry.status
    tags = {"kind": kind, "status": status, "git_commit": code, **entry.tags}
    if " " not in code:  # a commit, not a package version
        tags["mlflow.source.git.commit"] = code.partition("+")[0]
    if entry.sweeps:
        tags["sweep"] = ", ".join(entry.sweeps)
    if entry.error:
        tags["error"] = entry.error
    return tags | {member_tag(sweep): "yes" for sweep in entry.sweeps}
