"""The output while tasks run: a line for each task that ends, and one bar of training FLOPs."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

QUIET_SECONDS = 15.0  # between lines where no terminal redraws a bar


class Progress:
    """An observer of the executor. A training's weight is its FLOPs; other tasks count 0."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done_before: Counter[str] = Counter()
        self.known: set[str] = set()
        self.training: dict[str, Task] = {}
        self.finished_flops = 0.0
        self.bar: Any = None
        self.started = time.monotonic()
        self.last_line = 0.0

    def submitted(self, tasks: list[Task]) -> None:
        self._say_done_before()
        self.training = {task.identity: task for task in tasks if task.name == "train"}
        others = Counter(task.name for task in tasks)
        click.echo("To do: " + _listed(others))
        if self.training and sys.stderr.isatty():
            total = sum(task.weight for task in self.training.values())
            self.bar = tqdm(total=total, unit="FLOP", unit_scale=True, desc="training", smoothing=0.05, leave=False)
        self.started = self.last_line = time.monotonic()

    def again(self, task: Task, error: str) -> None:
        self._line(click.style(f"  again   {task.title}: {error}", fg="yellow"))

    def finished(self, outcome: Outcome) -> None:
        task = outcome.task
        if outcome.status == "done":
            self.done_before[task.name] += task.identity not in self.known
        self.known.add(task.identity)
        if outcome.status == "done":
            return
        if self.training.pop(task.identity, None) is not None:
            self.finished_flops += task.weight
        if outcome.status == "made":
            self._line(f"  made    {task.title}{_result(outcome.artifact)}")
        elif outcome.status == "failed":
            self._line(click.style(f"  FAILED  {task.title}: {outcome.error}", fg="red"))
        else:
            cause = outcome.cause.title if outcome.cause else "an input"
            self._line(click.style(f"  skipped {task.title}: it needs {cause}, which failed", fg="yellow"))

    def tick(self) -> None:
        if not any(task.weight for task in self.training.values()):
            return
        done = self.finished_flops + sum(self._part(task) * task.weight for task in self.training.values())
        if self.bar is not None:
            self.bar.n = max(self.bar.n, done)
            self.bar.set_postfix_str(f"{len(self.training)} to go")
            self.bar.refresh()
        elif time.monotonic() - self.last_line >= QUIET_SECONDS:
            total = self.finished_flops + sum(task.weight for task in self.training.values())
            seconds = time.monotonic() - self.started
            left = f", about {seconds * (total - done) / done:.0f} s left" if done > 0.02 * total else ""
            self._line(f"  training {done / total:4.0%} of {total:.3g} FLOPs, {len(self.training)} to go{left}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        self._say_done_before()

    def _say_done_before(self) -> None:
        if self.done_before.total():
            click.echo("Already done: " + _listed(+self.done_before))
        self.done_before.clear()

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        if self.bar is not None:
            self.bar.write(text)
        else:
            click.echo(text)

    def _part(self, task: Task) -> float:
        """The finished share of a running training, from the last line of its live record."""
        record = self.store.work(task.name, task.identity) / "record"
        newest = max(record.glob("metrics-*.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
        step = _last_step(newest) if newest else None
        if step is None:
            return 0.0
        start, stop = task.spec.start_step, task.spec.stop_step  # type: ignore[attr-defined]
        return min(1.0, max(0.0, (step - start) / (stop - start)))


def _last_step(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _result(artifact: Path | None) -> str:
    """The loss of a training, if there is one."""
    path = artifact / "result.json" if artifact else None
    if path is None or not path.is_file():
        return ""
    result = json.loads(path.read_text())
    if result.get("status") == "diverged":
        return click.style(f"  diverged: {result.get('reason')}", fg="yellow")
    loss, seconds = result.get("validation_loss"), result.get("seconds")
    return f"  loss {loss:.4f}, {seconds:.0f} s" if loss is not None and seconds is not None else ""


def _listed(counts: Counter[str]) -> str:
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())
