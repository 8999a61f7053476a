"""What every pipeline needs: the store, Ray if something has to run, MLflow's recorder, a progress bar."""

import os
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import click

from reducible.pipelines.cluster.ray_session import Cluster, session
from reducible.pipelines.progress import Progress
from reducible.tasks.errors import UserError
from reducible.tasks.mlflow.recorder import Recorder
from reducible.tasks.workflow.execute import execute, stop_politely
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, in_order


@dataclass
class Engine:
    """Makes tasks. Ray starts with the first task that has to run and stays open for the rest."""

    store: Store
    recorder: Recorder
    stack: ExitStack
    progress: Progress
    cluster: Cluster | None = None

    def make(self, targets: list[Task]) -> dict[str, Outcome]:
        """Makes the targets and reports progress. A finished task is reported once, even if several need it."""
        try:
            return execute(targets, self.store, self._session, [self.recorder, self.progress])
        finally:
            self.progress.close()

    def _session(self) -> AbstractContextManager[Cluster]:
        if self.cluster is None:
            if not os.access(self.store.root / "staging", os.W_OK):
                raise UserError(f"--root {self.store.root}: cannot be written; give a folder that can")
            click.echo("Starting Ray ...")
            self.cluster = self.stack.enter_context(session())
        return nullcontext(self.cluster)


@contextmanager
def engine(store: Store, tracking_uri: str | None = None) -> Iterator[Engine]:
    """Opens the engine. tracking_uri: MLflow's; default a database under the root."""
    stop_politely()
    store.make()
    recorder = Recorder(store.root, tracking_uri, say=lambda line: click.echo(line, err=True))
    with ExitStack() as stack:
        stack.callback(recorder.close)
        recorder.catch_up()
        yield Engine(store, recorder, stack, Progress(store))


def to_make_again(names: Sequence[str], targets: Sequence[Task], made: Container[str] = ()) -> dict[str, str]:
    """{identity: reason} of the tasks that --fresh makes again: those with the name or label, and all made from them.

    made: identities that were made again already. Only what is made from them is still to do.

    Raises:
        UserError: no task of this pipeline has the name. The line lists the names.
    """
    tasks = [task for task in in_order(list(targets)) if task.run]  # a base that is there cannot be made here
    for name in names:
        if not any(name in (task.name, task.title) for task in tasks):
            raise UserError(
                f"--fresh {name}: no such task here; there are {', '.join(sorted({t.name for t in tasks}))}"
            )
    chosen: dict[str, str] = {}
    for task in tasks:
        if task.identity in made:
            continue
        if task.name in names or task.title in names:
            chosen[task.identity] = "asked for with --fresh"
        elif any(t.identity in chosen or t.identity in made for t in task.inputs.values()):
            chosen[task.identity] = "an input is made again"
    return chosen


def make_again(
    names: Sequence[str], targets: Sequence[Task], store: Store, made: Container[str] = ()
) -> dict[str, str]:
    """Removes the artifacts of these tasks, so that they are made again; prints which and why."""
    chosen = to_make_again(names, targets, made)
    for task in in_order(list(targets)):
        if task.identity in chosen:
            store.discard(task.name, task.identity)
    return chosen


def failures(outcomes: dict[str, Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes.values() if outcome.status == "failed"]
