"""What every pipeline needs to run: the store, Ray when something has to run, MLflow's recorder, a progress bar."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import click

from pipelines.progress import Progress
from pipelines.ray_session import session
from pipelines.recipe import Compute, Recipe
from tasks.errors import UserError
from tasks.execute import Outcome, execute, stop_politely
from tasks.mlflow_recorder import Recorder
from tasks.store import Store
from tasks.task import Resources, Task, in_order


@dataclass
class Engine:
    """Makes tasks. Ray starts with the first one that has to run and stays for those that follow."""

    store: Store
    recorder: Recorder
    compute: Compute
    stack: ExitStack
    open: bool = False

    def make(self, targets: list[Task]) -> dict[str, Outcome]:
        progress = Progress(self.store)
        try:
            return execute(targets, self.store, self._session, [self.recorder, progress])
        finally:
            progress.close()

    def _session(self) -> Any:
        if not self.open:
            click.echo("Starting Ray ...")
            self.stack.enter_context(session())
            self.open = True
        return nullcontext()


@contextmanager
def engine(recipe: Recipe, store: Store) -> Iterator[Engine]:
    stop_politely()
    recorder = Recorder(store.root, recipe.mlflow, say=lambda line: click.echo(line, err=True))
    with ExitStack() as stack:
        stack.callback(recorder.close)
        yield Engine(store, recorder, recipe.compute, stack)


def make_again(names: Sequence[str], targets: Sequence[Task], store: Store) -> None:
    """--fresh: takes out the artifacts of these tasks, by task name or label.

    Raises:
        UserError: a name that no task of this pipeline has, with those there are.
    """
    tasks = in_order(list(targets))
    for name in names:
        chosen = [task for task in tasks if name in (task.name, task.title)]
        if not chosen:
            raise UserError(
                f"--fresh {name}: no such task here; there are {', '.join(sorted({t.name for t in tasks}))}"
            )
        for task in chosen:
            store.discard(task.name, task.identity)


def failures(outcomes: dict[str, Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes.values() if outcome.status == "failed"]


def training_resources(compute: Compute) -> Resources:
    return Resources(cpus=compute.cpus_per_worker, gpus=compute.gpus_per_worker, workers=compute.workers)
