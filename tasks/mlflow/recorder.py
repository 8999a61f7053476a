"""MLflow as a projection of the store: a thread of the driver that follows the records of tasks and writes their runs.

Tasks only write files (tasks/workflow/record.py). This thread reads them while tasks run and after they have committed.
It keeps one MLflow run for each artifact, found by its tag `reducible.artifact`. If the tracking server is away, the
tasks do not notice. What it missed is sent when it is back, by this command or the next (`catch_up`).
"""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reducible.tasks.mlflow.ledger import ENDED, Entry, Ledger

if TYPE_CHECKING:
    from reducible.tasks.mlflow.projector import Open, Projector
    from reducible.tasks.workflow.outcome import Outcome
    from reducible.tasks.workflow.task import Task

EXPERIMENT = "reducible"


def default_tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else a SQLite file under the root, named by its absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute()}/mlflow.db"


def last_tracking_uri(root: Path) -> str:
    """Where the runs of this root went last; the default if none went anywhere yet, or if that file is gone."""
    with suppress(FileNotFoundError):
        uri = (root / "mlflow" / "tracking_uri").read_text().strip()
        if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists():
            return uri
    return default_tracking_uri(root)


@dataclass
class _Followed:
    entry: Entry
    lock: int | None = None
    """An open descriptor, held while this driver writes the run."""
    run: "Open | None" = None

    def release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class Recorder:
    """Follows tasks and writes their MLflow runs in its own thread. An observer of workflow.execute.execute().

    tracking_uri: None means default_tracking_uri(root). say: prints one line for a person.
    """

    def __init__(
        self,
        root: Path,
        tracking_uri: str | None = None,
        experiment: str = EXPERIMENT,
        poll_seconds: float = 2.0,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self.root = Path(root).absolute()
        self.tracking_uri = tracking_uri or default_tracking_uri(self.root)
        self.experiment = experiment
        self.ledger = Ledger(self.root)
        self._server = hashlib.sha256(f"{self.tracking_uri} {experiment}".encode()).hexdigest()[:12]
        self._poll_seconds = poll_seconds
        self._say = say
        self._complained = False
        self._followed: dict[str, _Followed] = {}
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._projector: Projector | None = None
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self.tracking_uri.startswith("sqlite:///") and not database.exists():
            self.ledger.forget(self._server)

    # What the driver calls -----------------------------------------------------------------------------------------

    def follow(
        self,
        identity: str,
        task: str = "",
        folders: Iterable[Path] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the run of that identity as soon as its record appears. A task without a record gets no run.

        The record is in the task's work folder, later in its artifact; or in `folders`, the final one last.
        The tag `sweep` makes the run a member of that sweep's view.
        """
        where = [self._relative(folder) for folder in folders]
        where = where or [f"work/{task}/{identity}/record", f"artifacts/{task}/{identity}/record"]
        tags = dict(tags or {})
        entry = self.ledger.read(identity) or Entry(identity, where)
        entry.folders = where
        entry.sweeps = sorted({*entry.sweeps, *([tags.pop("sweep")] if "sweep" in tags else [])})
        entry.tags |= tags
        entry.status, entry.error, entry.attempt = "running", "", ""
        entry.settle(self.root)
        self._add(entry)

    def end(self, identity: str, status: str, error: str = "") -> None:
        """status: finished, failed or killed."""
        with self._guard:
            followed = self._followed.get(identity)
        if followed is not None:
            followed.entry.status, followed.entry.error = status, error
            followed.entry.settle(self.root)
            self._wake.set()

    def submitted(self, tasks: "list[Task]") -> None:
        for task in tasks:
            self.follow(task.identity, task.name, tags=task.tags)

    def again(self, task: "Task", error: str) -> None: ...

    def finished(self, outcome: "Outcome") -> None:
        task = outcome.task
        if outcome.status == "done":
            self.follow(task.identity, task.name, tags=task.tags)
        elif outcome.status == "skipped":
            with self._guard:
                self._followed.pop(task.identity, None)
        else:
            self.end(task.identity, "finished" if outcome.ok else "failed", outcome.error)

    def tick(self) -> None: ...

    def catch_up(self) -> None:
        """Follows everything that MLflow has not been told yet, because a server was away or a driver was killed."""
        followed = {one.entry.identity for one in self._all()}
        for entry in self.ledger.entries():
            if entry.identity not in followed:
                entry.settle(self.root)
                if entry.status == "running":
                    entry.status = "killed"  # if its driver still runs, it holds the lock and this is dropped
                self._add(entry)

    def close(self, timeout: float = 30.0) -> bool:
        """Sends what is left, and waits no longer than timeout seconds. True: MLflow has everything.

        Tasks that are still running are marked killed. Running them again continues their runs.
        """
        for one in self._all():
            if one.entry.status == "running":
                one.entry.status = "killed"
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if not self._thread.is_alive():
                for one in self._all():
                    one.release()
        waiting = [one for one in self._all() if one.entry.record(self.root) is not None]
        if waiting:
            self._say(
                f"MLflow: {len(waiting)} runs are not in {self.tracking_uri} yet; "
                "the next command or `reducible ui` sends them"
            )
        return not waiting

    def url(self, server: str, sweep: str | None = None) -> str:
        """Where the published view opens on a server; connects."""
        from reducible.tasks.mlflow.view import link

        return link(server, self._connect().experiment_id, sweep)

    # The thread -----------------------------------------------------------------------------------------------------

    def _add(self, entry: Entry) -> None:
        if entry.complete(self._server):
            return
        with self._guard:
            self._followed.setdefault(entry.identity, _Followed(entry)).entry = entry
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow-recorder", daemon=True)
                self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        # On Linux this lowers the priority of this thread alone: the tasks need the processor more.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        pause = 0.0
        while True:
            if pause:
                self._closing.wait(pause)
            else:
                self._wake.wait(self._poll_seconds)
            self._wake.clear()
            closing = self._closing.is_set()  # read before the pass: what was added until now is in it
            try:
                self._pass()
                pause = 0.0
            except Exception as error:  # whatever MLflow raises must not reach the tasks
                if not self._complained:
                    self._complained = True
                    self._say(
                        f"MLflow at {self.tracking_uri}: {_one_line(error)}. "
                        "The tasks go on and nothing is lost; this is tried again"
                    )
                pause = min(60.0, 2 * (pause or 0.5))
            if closing and (pause or not any(one.lock is not None for one in self._all())):
                return

    def _pass(self) -> None:
        """Updates every run that is followed, once. A record that MLflow refuses does not hold up the others."""
        refused: Exception | None = None
        for one in self._all():
            try:
                self._bring_up(one)
            except Exception as error:
                one.run = None  # what it sent may not have arrived
                if self._projector is None or not self._projector.alive():
                    self._projector = None
                    raise
                refused = refused or error
        if refused is not None:
            raise refused

    def _bring_up(self, one: _Followed) -> None:
        entry = one.entry
        ended = entry.status in ENDED  # asked before the record is read; rows written later come in the next pass
        record = entry.record(self.root)
        if record is not None and one.lock is None:
            one.lock = self.ledger.acquire(entry.identity)
            if one.lock is not None:
                self.ledger.write(entry)
        if one.lock is not None and record is not None:
            try:
                one.run = self._connect().project(entry, one.run, record, ended)
            except FileNotFoundError:  # the record moved into its artifact while it was read
                one.run = None
                return
        if ended:  # also if there is no record, or if another driver holds the lock: then that one ends the run
            if one.lock is not None:
                self.ledger.write(entry)
            self._drop(one, entry)

    def _drop(self, one: _Followed, entry: Entry) -> None:
        with self._guard:
            if one.entry is entry:  # else it is followed again, because its run continues
                one.release()
                self._followed.pop(entry.identity, None)

    def _all(self) -> list[_Followed]:
        with self._guard:
            return list(self._followed.values())

    def _connect(self) -> "Projector":
        """The tracking server. Imports MLflow (seconds) on the first call."""
        if self._projector is None:
            quiet()
            from reducible.tasks.mlflow.projector import Projector

            self.ledger.folder.mkdir(parents=True, exist_ok=True)
            (self.ledger.folder / "tracking_uri").write_text(self.tracking_uri + "\n")
            self._projector = Projector(self.root, self.tracking_uri, self.experiment, self.ledger, self._server)
        return self._projector

    def _relative(self, folder: Path) -> str:
        folder = Path(folder).absolute()
        return str(folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder)


def catch_up(root: Path, tracking_uri: str | None = None, timeout: float = 600.0) -> bool:
    """Brings MLflow up to date with the store and waits for it. True: MLflow has everything. Instant if it had."""
    recorder = Recorder(root, tracking_uri, poll_seconds=0.05)
    recorder.catch_up()
    return recorder.close(timeout)


def quiet() -> None:
    """Turns off MLflow's telemetry, progress messages and long retries. Call before the first import of mlflow."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if lines and "Max retries exceeded" in lines[0]:
        return "no answer"
    return (lines[0] if lines else type(error).__name__)[:200]
