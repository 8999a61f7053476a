"""Runs tasks on Ray: hands over those that may start while there is room, and tries again those that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from reducible.data.errors import DataError
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.attempt import one_line, payload_of, run_task
from reducible.tasks.workflow.order import Order
from reducible.tasks.workflow.outcome import Observer, Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

LAUNCHER_BYTES = 2**30  # reserved by each task that waits for its own workers; it limits how many wait at once
LOST = 3
"""How often a task is begun again because its worker or its node was lost."""


def run_on_ray(
    waiting: list[Task], store: Store, outcomes: dict[str, Outcome], observers: Iterable[Observer], grows: bool = False
) -> None:
    """Runs the tasks and adds their outcomes. Of those that could start, the one that leads to the most work is first.

    grows: the cluster starts nodes for what waits in Ray, so all that could start is handed over.
    """
    import ray

    for observer in observers:
        observer.submitted(waiting)
    order, attempts, room = Order(waiting), Attempts(), Room(grows)
    running: dict[Any, Task] = {}

    def fits(task: Task) -> bool:
        return room.takes(attempts.resources(task))

    def end(outcome: Outcome) -> None:
        outcomes[outcome.task.identity] = outcome
        for observer in observers:
            observer.finished(outcome)

    try:
        while order.waiting or running:
            room.look([attempts.resources(task) for task in running.values()])
            while (task := order.take(fits)) is not None:
                running[_submitted(task, attempts, store)] = task
            finished, _ = ray.wait(list(running), num_returns=1, timeout=0.3)
            for reference in finished:
                task = running.pop(reference)
                failure = _failure(reference)
                if failure is None:
                    end(Outcome(task, "made", store.artifact(task.name, task.identity)))
                    order.done(task)
                elif attempts.again(task, failure):
                    for observer in observers:
                        observer.again(task, failure.line)
                    running[_submitted(task, attempts, store)] = task
                else:
                    end(Outcome(task, "failed", error=attempts.reason(task, failure)))
                    for dependant in order.drop(task):
                        end(Outcome(dependant, "skipped", error=outcomes[task.identity].error, cause=task))
            for observer in observers:
                observer.tick()
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=False)
        raise


class Failure(NamedTuple):
    """Why an attempt failed, in one line. kind: failed, lost (its worker or node is gone), or mistake (a person's)."""

    kind: str
    line: str


class Attempts:
    """How often each task failed. A task that shares a GPU is tried again with all of it."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()

    def again(self, task: Task, failure: Failure) -> bool:
        """Counts the failure. Whether the task is to be tried again; a mistake would be the same each time."""
        most = {"failed": task.retries, "lost": LOST, "mistake": 0}
        self.failures[task.identity, failure.kind] += 1
        return self.failures[task.identity, failure.kind] <= most[failure.kind]

    def tried(self, task: Task) -> int:
        return sum(self.failures[task.identity, kind] for kind in ("failed", "lost", "mistake"))

    def resources(self, task: Task) -> dict[str, float]:
        """The CPUs and GPUs that it holds while it runs, with its workers."""
        held = task.resources
        gpus = held.gpus * (1.0 if self.tried(task) else held.share)
        return {"CPU": held.cpus * held.workers, "GPU": gpus * held.workers}

    def reason(self, task: Task, failure: Failure) -> str:
        times = self.tried(task)
        return f"{failure.line} (tried {times} times)" if times > 1 else failure.line


class Room:
    """What the cluster has, and what the tasks that have not ended hold of it.

    A task is handed over while something of each that it asks for is free, so that Ray packs fractions, and hardly
    anything waits in Ray, where nothing could overtake it.
    """

    def __init__(self, grows: bool) -> None:
        self.grows = grows
        self.free: dict[str, float] = {}

    def look(self, held: list[dict[str, float]]) -> None:
        """Sees what the cluster has now, less what is held."""
        import ray

        there = {} if self.grows else ray.cluster_resources()
        self.free = {name: there.get(name, 0.0) - sum(one[name] for one in held) for name in ("CPU", "GPU")}

    def takes(self, asked: Mapping[str, float]) -> bool:
        """Whether the task may be handed over; if so, it holds what it asks for from now on."""
        if not self.grows and any(amount > 0 and self.free[name] < 1e-6 for name, amount in asked.items()):
            return False
        for name in self.free:
            self.free[name] -= asked[name]
        return True


def _submitted(task: Task, attempts: Attempts, store: Store) -> Any:
    import ray

    held = task.resources
    alone = held.workers == 1
    asked = attempts.resources(task)
    return (
        ray.remote(run_task)
        .options(
            name=task.title,
            # A task with several workers only waits for them. If it held a CPU itself, they might never get theirs.
            num_cpus=asked["CPU"] if alone else 0,
            num_gpus=asked["GPU"] if alone else 0,
            memory=held.memory or (None if alone else LAUNCHER_BYTES),
            max_retries=0,  # Ray would begin a task again for ever that does not fit into memory
        )
        .remote(payload_of(task), str(store.root))
    )


def _failure(reference: Any) -> Failure | None:
    """Why the attempt failed, if it did."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        mistake = isinstance(error.cause, (UserError, DataError))
        return Failure("mistake" if mistake else "failed", one_line(error.cause))
    except ray.exceptions.RayError as error:
        return Failure("lost", one_line(error))
    return None
