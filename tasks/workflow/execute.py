"""Runs a graph of tasks on Ray: skips what is done and hands the rest to Ray, which orders and retries it.

Tasks pass paths to each other, never objects, so that a run continues after a crash without any of Ray's state.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reducible.data.errors import DataError
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.code_version import code_version
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Context, Task, description, function_of, in_order


@dataclass(frozen=True)
class Outcome:
    """How a task ended: done (it was before), made (now), failed, or skipped (something it needs failed)."""

    task: Task
    status: str
    artifact: Path | None = None
    error: str = ""
    cause: Task | None = None

    @property
    def ok(self) -> bool:
        return self.status in ("done", "made")


LAUNCHER_BYTES = 2**30  # reserved by each task that waits for its own workers; it limits how many wait at once


class Cluster(Protocol):
    """Where tasks run. It refuses a task that none of its nodes could ever hold."""

    def require(self, what: str, cpus: float = 1, gpus: float = 0, workers: int = 1) -> None: ...


class Observer(Protocol):
    """Told what happens while tasks run: a progress bar, MLflow."""

    def submitted(self, tasks: list[Task]) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...
    def tick(self) -> None: ...


def pending(store: Store, targets: Iterable[Task]) -> list[Task]:
    """The tasks that must run to make the targets, inputs first. Inputs that only finished tasks need are left out."""
    needed: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.identity in needed or store.committed(task.name, task.identity):
            return
        for upstream in task.inputs.values():
            visit(upstream)
        needed[task.identity] = task

    for target in targets:
        visit(target)
    return list(needed.values())


def execute(
    targets: list[Task],
    store: Store,
    session: Callable[[], AbstractContextManager["Cluster | None"]],
    observers: Iterable[Observer] = (),
) -> dict[str, Outcome]:
    """Makes the targets. Returns the outcome of every target and of everything it needs, by identity.

    `session` opens Ray. It is called only if something has to run. Independent tasks run at the same time, the
    heaviest first. If a task fails, the tasks that need it fail with the same error; all others finish.
    """
    observers = list(observers)
    waiting = pending(store, targets)
    unfinished = {task.identity for task in waiting}
    outcomes: dict[str, Outcome] = {}
    for task in in_order(targets):
        if task.identity not in unfinished and store.committed(task.name, task.identity):
            outcomes[task.identity] = Outcome(task, "done", store.artifact(task.name, task.identity))
            for observer in observers:
                observer.finished(outcomes[task.identity])
    if waiting:
        with session() as cluster:
            if cluster is not None:
                for task in waiting:
                    held = task.resources
                    cluster.require(task.title, held.cpus, held.gpus, held.workers)
            _run_on_ray(waiting, store, outcomes, observers)
    return outcomes


def _run_on_ray(waiting: list[Task], store: Store, outcomes: dict[str, Outcome], observers: list[Observer]) -> None:
    import ray

    remote = ray.remote(_run_task)
    references: dict[str, Any] = {}
    tasks_of: dict[Any, Task] = {}
    for observer in observers:
        observer.submitted(waiting)
    for task in _heaviest_first(waiting):
        upstream = [references[t.identity] for t in task.inputs.values() if t.identity in references]
        held = task.resources
        alone = held.workers == 1
        reference = remote.options(
            name=task.title,
            # A task with several workers only waits for them. If it held a CPU itself, they might never get theirs.
            num_cpus=held.cpus if alone else 0,
            num_gpus=held.gpus if alone else 0,
            memory=held.memory or (None if alone else LAUNCHER_BYTES),
            max_retries=3,  # a killed worker or node; the function's own errors are never retried
        ).remote(payload_of(task), str(store.root), *upstream)
        references[task.identity] = reference
        tasks_of[reference] = task

    unfinished = list(tasks_of)
    try:
        while unfinished:
            # All that are ready, in order, so that a failed task is seen before the tasks that need it.
            ready, unfinished = ray.wait(unfinished, num_returns=len(unfinished), timeout=0.3)
            for reference in ready:
                outcome = _outcome(tasks_of[reference], reference, store, outcomes)
                outcomes[outcome.task.identity] = outcome
                for observer in observers:
                    observer.finished(outcome)
            for observer in observers:
                observer.tick()
    except BaseException:
        for reference in unfinished:
            ray.cancel(reference, force=False)
        raise


def _heaviest_first(waiting: list[Task]) -> list[Task]:
    """The tasks, inputs first. Of the tasks that could start, the one that leads to the most work comes first."""
    ahead: dict[str, float] = {}
    for task in reversed(waiting):
        ahead[task.identity] = task.weight + ahead.get(task.identity, 0.0)
        for upstream in task.inputs.values():
            ahead[upstream.identity] = max(ahead.get(upstream.identity, 0.0), ahead[task.identity])
    depth: dict[str, int] = {}
    for task in waiting:
        depth[task.identity] = 1 + max((depth.get(t.identity, 0) for t in task.inputs.values()), default=0)
    return sorted(waiting, key=lambda task: (depth[task.identity], -ahead[task.identity]))


def payload_of(task: Task) -> dict[str, Any]:
    """What is sent to the worker: this task and the identities of its inputs, not the graph."""
    return {
        "name": task.name,
        "identity": task.identity,
        "label": task.title,
        "run": task.run,
        "spec": task.spec,
        "execution": task.execution,
        "described": description(task),
        "inputs": {name: (upstream.name, upstream.identity) for name, upstream in task.inputs.items()},
        "tags": dict(task.tags),
        "code": code_version(),
    }


def _run_task(payload: Mapping[str, Any], root: str, *upstream: str) -> str:
    """Runs on a worker. `upstream` is for Ray only, which starts this task when those have succeeded."""
    os.environ["REDUCIBLE_CODE"] = payload["code"]  # of the driver: a worker may run from an upload without .git
    return str(run_here(payload, Store(root)))


def run_here(payload: Mapping[str, Any], store: Store) -> Path:
    """Runs one task in this process and commits its artifact; returns the artifact's folder."""
    name, identity = payload["name"], payload["identity"]
    artifact = store.artifact(name, identity)
    if store.committed(name, identity):
        return artifact
    work = store.work(name, identity)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with store.staged(name, identity, payload["label"], payload["described"]) as (attempt, staging):
            function_of(payload["run"])(
                Context(
                    name=name,
                    identity=identity,
                    label=payload["label"],
                    spec=payload["spec"],
                    execution=payload["execution"],
                    attempt=attempt,
                    staging=staging,
                    work=work,
                    root=store.root,
                    inputs={key: store.artifact(*where) for key, where in payload["inputs"].items()},
                    tags=payload["tags"],
                )
            )
    except (UserError, DataError):
        raise
    except Exception as error:
        if store.committed(name, identity):  # another attempt committed first and removed the work folder
            return artifact
        log = work / "error.log"
        log.write_text(traceback.format_exc())
        raise RuntimeError(f"{type(error).__name__}: {_one_line(error)} (traceback in {log})") from None
    return artifact


def _outcome(task: Task, reference: Any, store: Store, outcomes: Mapping[str, Outcome]) -> Outcome:
    import ray

    broken = [
        outcomes[t.identity] for t in task.inputs.values() if t.identity in outcomes and not outcomes[t.identity].ok
    ]
    try:
        artifact = Path(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if broken:
            first = broken[0]
            return Outcome(task, "skipped", error=first.error, cause=first.cause or first.task)
        return Outcome(task, "failed", error=_one_line(error.cause))
    except ray.exceptions.RayError as error:
        return Outcome(task, "failed", error=_one_line(error))
    return Outcome(task, "made", artifact)


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def stop_politely() -> None:
    """Makes SIGTERM (a stopped job) end the driver as Ctrl-C does: children are stopped, nothing is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
