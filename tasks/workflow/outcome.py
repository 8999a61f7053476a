"""How a task ended, and who is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reducible.tasks.workflow.task import Task


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


class Observer(Protocol):
    """Told what happens while tasks run: a progress bar, MLflow. again: a task failed and is tried once more."""

    def submitted(self, tasks: list[Task]) -> None: ...
    def again(self, task: Task, error: str) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...
    def tick(self) -> None: ...
