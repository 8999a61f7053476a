"""The pipeline `run`: tokenise -> train -> evaluate -> summary."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from reducible.pipelines.engine import engine, failures, make_again
from reducible.pipelines.evaluation import evaluation_of, evaluation_task
from reducible.pipelines.find import name_of
from reducible.pipelines.finetune import Start
from reducible.pipelines.finetune import start_of as from_base
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.training import Model, family_of, idle_workers, model_of, train_spec, training_task
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.known_entropy import known_loss
from reducible.tasks.train.folders import ADAPTER, MODEL
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.pipeline_summary import SummarySpec
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022: about compute-optimal. Used if the recipe has no train.tokens


@dataclass(frozen=True)
class RunTasks:
    model: Model
    dataset: Task
    train: Task
    evaluate: Task
    summary: Task
    provisional: bool
    """Whether the length of the training is a guess, because the dataset is not made yet."""


def run_tasks(recipe: Recipe, store: Store) -> RunTasks:
    start = from_nothing(recipe, store) if recipe.finetune is None else from_base(recipe, store)
    recipe, model, dataset = start.recipe, start.model, start.dataset
    spec = train_spec(recipe, model, tokens=start.tokens)
    inputs = {"data": dataset, **start.inputs}
    train = training_task(recipe, model, spec, inputs, f"train {recipe.name}", {"pipeline": recipe.name})
    return after_training(recipe.name, model, dataset, train, start.evaluation, start.provisional)


def after_training(
    name: str, model: Model, dataset: Task, train: Task, settings: EvaluateSpec, provisional: bool = False
) -> RunTasks:
    """The evaluation and the summary that follow a training."""
    tags = {"pipeline": name}
    evaluation = evaluation_task(train, dataset, name, tags, settings)
    summary = Task(
        name="summary",
        version=1,
        run="reducible.tasks.workflow.pipeline_summary:run",
        spec=SummarySpec(name=name),
        inputs={"data": dataset, "model": train, "evaluation": evaluation},
        label=f"summary {name}",
        tags=tags,
    )
    return RunTasks(model, dataset, train, evaluation, summary, provisional)


def from_nothing(recipe: Recipe, store: Store) -> Start:
    family = family_of(recipe)
    evaluation = evaluation_of(recipe, family)
    dataset = recipe.data.dataset_task(recipe.name, store)
    model = model_of(recipe, recipe.data.facts(store), recipe.data.lengths(store, dataset, family.reads))
    tokens = recipe.train.tokens or TOKENS_PER_PARAMETER * model.cost.parameters
    return Start(recipe, model, dataset, {}, tokens, False, evaluation)


def run_recipe(recipe: Recipe, root: str, fresh: Sequence[str] = ()) -> int:
    """Runs the pipeline and prints the result; returns the exit code."""
    store = Store(root)
    tasks = run_tasks(recipe, store)
    make_again(fresh, [tasks.summary], store)
    spec: Any = tasks.train.spec
    if note := idle_workers(spec.batch // spec.sequence, spec.micro_batch, recipe.compute.workers):
        click.echo(note)
    with engine(store, recipe.mlflow) as made:
        outcomes = {}
        if tasks.provisional:
            outcomes = made.make([tasks.dataset])
            tasks = run_tasks(recipe, store) if not failures(outcomes) else tasks
        if not failures(outcomes):
            outcomes = made.make([tasks.summary])
    if failed := failures(outcomes):
        return say_failures(failed)
    return print_result(recipe, tasks, store, root)


def say_failures(failed: Sequence[Outcome]) -> int:
    """A line for each task that failed; the exit code."""
    for outcome in failed:
        click.secho(f"reducible: {outcome.task.title}: {outcome.error}", fg="red", err=True)
    return 1


def print_result(recipe: Recipe, tasks: RunTasks, store: Store, root: str) -> int:
    """Prints what a finished run came to; returns the exit code, 1 if the training diverged."""
    folder = store.artifact("train", tasks.train.identity)
    result = json.loads((folder / "result.json").read_text())
    if result["status"] != "finished":
        click.secho(f"reducible: {tasks.train.title}: {result['reason']}", fg="red", err=True)
        return 1
    evaluation = json.loads((store.artifact("evaluate", tasks.evaluate.identity) / "evaluation.json").read_text())
    dataset = json.loads((store.artifact("dataset", tasks.dataset.identity) / "dataset.json").read_text())
    known = recipe.data.known_entropy(dataset)
    name = name_of(store, "train", tasks.train.identity, recipe.name)
    at = "" if root == ".reducible" else f" --root {shlex.quote(root)}"
    click.echo(
        f"\n{recipe.name}: {result['parameters']:,} parameters, {result['units']:,} {evaluation['unit']}s, "
        f"{result['flops']:.3g} FLOPs\n"
        f"  loss    {evaluation['headline']}\n{_compared(result, evaluation['unit'])}"
        f"{f'  truth   {known_loss(known, recipe.data.unit)}{chr(10)}' if known else ''}"
        f"{_left(folder)}"
        f'  write   reducible sample {shlex.quote(name)}{at} --prompt "..."\n'
        f"  browse  reducible ui{at}"
    )
    return 0


def _compared(result: dict[str, Any], unit: str) -> str:
    """The change of the loss by fine-tuning, on the same examples."""
    if result.get("base_loss") is None:
        return ""
    before, after = result["base_loss"], result["validation_loss"]
    return f"  change  from {before:.4f} (the base) to {after:.4f} nats per {unit} on the validation examples\n"


def _left(folder: Path) -> str:
    """The folders that a user may want to use outside this project."""
    return "".join(f"  {name:7} {folder / name}\n" for name in (MODEL, ADAPTER) if (folder / name).is_dir())
