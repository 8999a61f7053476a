"""Which of the tasks that wait may start, and which comes first: the one that leads to the most work.

A driver starts tasks from here one by one as room becomes free. If it handed all of them to Ray at once, Ray would run
them in the order in which they became ready, and the longest chain of a sweep's trunk could begin its last part when
everything else has ended.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable

from reducible.tasks.workflow.task import Task


class Order:
    """The tasks that have not started, inputs first. Inputs that are not among them are done."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.waiting = {task.identity: task for task in tasks}
        self.ahead = work_ahead(list(self.waiting.values()))
        self._missing: dict[str, set[str]] = {}
        self._needed_by: dict[str, list[Task]] = {}
        self._ready: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        for task in self.waiting.values():
            missing = {upstream.identity for upstream in task.inputs.values() if upstream.identity in self.waiting}
            self._missing[task.identity] = missing
            for identity in missing:
                self._needed_by.setdefault(identity, []).append(task)
            if not missing:
                self._push(task)

    def take(self, fits: Callable[[Task], bool]) -> Task | None:
        """The first task that could start and fits; None if there is none."""
        passed = []
        found = None
        while self._ready and found is None:
            entry = heapq.heappop(self._ready)
            if fits(self.waiting[entry[-1]]):
                found = self.waiting.pop(entry[-1])
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._ready, entry)
        return found

    def done(self, task: Task) -> None:
        """The task was made: what waited for it alone may start."""
        for dependant in self._needed_by.get(task.identity, []):
            missing = self._missing[dependant.identity]
            missing.discard(task.identity)
            if not missing and dependant.identity in self.waiting:
                self._push(dependant)

    def drop(self, task: Task) -> list[Task]:
        """The task failed. Returns all that needed it, inputs first; they wait no longer."""
        dropped: dict[str, Task] = {}
        for candidate in list(self.waiting.values()):
            needs = {upstream.identity for upstream in candidate.inputs.values()}
            if needs & (dropped.keys() | {task.identity}):
                dropped[candidate.identity] = self.waiting.pop(candidate.identity)
        return list(dropped.values())

    def _push(self, task: Task) -> None:
        heapq.heappush(self._ready, (-self.ahead[task.identity], next(self._count), task.identity))


def work_ahead(tasks: list[Task]) -> dict[str, float]:
    """By identity, the weight of the heaviest chain that begins with each task. The tasks come inputs first."""
    ahead: dict[str, float] = {}
    for task in reversed(tasks):
        ahead[task.identity] = task.weight + ahead.get(task.identity, 0.0)
        for upstream in task.inputs.values():
            ahead[upstream.identity] = max(ahead.get(upstream.identity, 0.0), ahead[task.identity])
    return ahead
