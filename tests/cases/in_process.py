"""Tasks run in this process, one after another: as a pipeline orders them, without the seconds that Ray's start takes.

A command that a test gives with `said` is the person's own, and what the test has registered or patched counts in it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reducible.pipelines.cli import main
from reducible.tasks.workflow.attempt import payload_of, run_here
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, in_order


def make(targets: Sequence[Task], store: Store) -> None:
    """Makes the targets and all that they need."""
    for task in in_order(list(targets)):
        run_here(payload_of(task), store)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """From here on commands run their tasks in this process."""
    patch.setattr("reducible.tasks.workflow.execute.run_on_ray", _in_this_process)
    patch.setattr("reducible.pipelines.engine.session", nullcontext)


def called(*arguments: object) -> Result:
    """The command `reducible` with these arguments, however it ends."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(*arguments: object) -> str:
    """What the command says. It must succeed."""
    result = called(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def _in_this_process(
    waiting: Sequence[Task], store: Store, outcomes: dict[str, Outcome], observers: Sequence[Any], grows: bool
) -> None:
    for observer in observers:
        observer.submitted(waiting)
    for task in waiting:
        outcomes[task.identity] = Outcome(task, "made", run_here(payload_of(task), store))
        for observer in observers:
            observer.finished(outcomes[task.identity])
