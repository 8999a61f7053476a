"""Runs a graph of tasks: skips what is done and runs the rest on Ray (tasks/workflow/on_ray.py).

Tasks pass paths to each other, never objects, so that a run continues after a crash without any of Ray's state.
"""

import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from reducible.tasks.workflow.on_ray import run_on_ray
from reducible.tasks.workflow.outcome import Observer, Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, in_order


class Cluster(Protocol):
    """Where tasks run. It refuses a task that none of its nodes could ever hold.

    grows: whether it may start nodes for tasks that wait.
    """

    @property
    def grows(self) -> bool: ...

    def require(self, what: str, cpus: float = 1, gpus: float = 0, workers: int = 1) -> None: ...


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
    heaviest first. If a task fails for good, the tasks that need it fail with the same error; all others finish.
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
            run_on_ray(waiting, store, outcomes, observers, grows=cluster is not None and cluster.grows)
    return outcomes


def stop_politely() -> None:
    """Makes SIGTERM (a stopped job) end the driver as Ctrl-C does: children are stopped, nothing is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
