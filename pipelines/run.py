"""The pipeline `run`: tokenise -> train -> evaluate, with a summary that speaks for it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from pipelines.data import dataset_task, lengths_of, model_facts
from pipelines.engine import engine, failures, make_again
from pipelines.recipe import Recipe
from pipelines.training import Model, family_of, model_of, train_spec, training_task
from tasks.dataset import TEST_SPLIT
from tasks.errors import UserError
from tasks.evaluate import spec as evaluate_spec
from tasks.evaluate.spec import EvaluateSpec
from tasks.store import Store
from tasks.summary import SummarySpec
from tasks.task import Task

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022: about compute-optimal, where the recipe names no number of tokens


@dataclass(frozen=True)
class RunTasks:
    model: Model
    dataset: Task
    train: Task
    evaluate: Task
    summary: Task


def run_tasks(recipe: Recipe, store: Store) -> RunTasks:
    kind = family_of(recipe)
    if recipe.evaluate.gradient_flow and kind.name != "recurrent":
        raise UserError(f"evaluate.gradient_flow: is for the family recurrent; leave it out with a {kind.name}")
    if recipe.evaluate.split == "test" and not recipe.data.may_test:
        raise UserError(f"evaluate.split: these data have no test split; {TEST_SPLIT}")
    dataset = dataset_task(recipe, store)
    model = model_of(recipe, model_facts(recipe, store), lengths_of(recipe, store, dataset, kind.reads))
    tags = {"pipeline": recipe.name}
    tokens = recipe.train.tokens or TOKENS_PER_PARAMETER * model.cost.parameters
    spec = train_spec(recipe, model, tokens=tokens)
    train = training_task(recipe, model, spec, {"data": dataset}, f"train {recipe.name}", tags)
    evaluation = evaluation_task(train, dataset, recipe.name, tags, recipe.evaluate)
    summary = Task(
        name="summary",
        version=1,
        run="tasks.summary:run",
        spec=SummarySpec(name=recipe.name),
        inputs={"data": dataset, "model": train, "evaluation": evaluation},
        label=f"summary {recipe.name}",
        tags=tags,
    )
    return RunTasks(model, dataset, train, evaluation, summary)


def evaluation_task(train: Task, dataset: Task, name: str, tags: Mapping[str, str], spec: EvaluateSpec) -> Task:
    return Task(
        name="evaluate",
        version=evaluate_spec.VERSION,
        run="tasks.evaluate.task:run",
        spec=spec,
        inputs={"model": train, "data": dataset},
        label=f"evaluate {name}",
        tags=tags,
    )


def run_recipe(recipe: Recipe, root: str, fresh: Sequence[str] = ()) -> int:
    """Runs the pipeline and says what came out; the exit code."""
    store = Store(root)
    tasks = run_tasks(recipe, store)
    make_again(fresh, [tasks.summary], store)
    with engine(store, recipe.mlflow) as made:
        outcomes = made.make([tasks.summary])
    failed = failures(outcomes)
    if failed:
        for outcome in failed:
            click.secho(f"reducible: {outcome.task.title}: {outcome.error}", fg="red", err=True)
        return 1
    folder = store.artifact("train", tasks.train.identity)
    result = json.loads((folder / "result.json").read_text())
    if result["status"] != "finished":
        click.secho(f"reducible: {tasks.train.title}: {result['reason']}", fg="red", err=True)
        return 1
    evaluation = json.loads((store.artifact("evaluate", tasks.evaluate.identity) / "evaluation.json").read_text())
    at = "" if root == ".reducible" else f" --root {shlex.quote(root)}"
    click.echo(
        f"\n{recipe.name}: {result['parameters']:,} parameters, {result['units']:,} {evaluation['unit']}s, "
        f"{result['flops']:.3g} FLOPs\n"
        f"  loss    {evaluation['headline']}\n"
        f"  model   {folder / 'model'}\n"
        f'  write   reducible sample {shlex.quote(recipe.name)}{at} --prompt "..."\n'
        f"  browse  reducible ui{at}"
    )
    return 0
