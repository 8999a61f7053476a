"""`reducible sample` and `reducible evaluate`: what a trained model writes, and how well it predicts."""

import json
from collections.abc import Sequence

import click

from reducible.pipelines.engine import engine, failures
from reducible.pipelines.evaluation import evaluation_task
from reducible.pipelines.find import find
from reducible.pipelines.recipe.load import load_evaluation
from reducible.pipelines.training import family_that_trained, say_if_code_differs
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.store import Store, read_manifest, read_spec
from reducible.tasks.workflow.task import finished


def print_sample(
    run: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, root: str
) -> None:
    """Prints what the model writes for the prompt: the continuation of a text, the target of a pair, a forecast."""
    from reducible.tasks.evaluate.evaluate_spec import SampleOptions
    from reducible.tasks.evaluate.evaluate_task import sample

    store = Store(root)
    folder = find(store, "train", run)
    manifest = read_manifest(folder)
    if not (folder / MODEL).is_dir():
        raise UserError(f"{run}: that training diverged and left no model")
    say_if_code_differs(read_spec(folder, TrainSpec))
    data = store.artifact("dataset", manifest["inputs"]["data"])
    click.echo(sample(folder, data, prompt, SampleOptions(tokens, temperature, top_k, seed)))


def evaluate_run(run: str, overrides: Sequence[str], root: str) -> int:
    """Evaluates a trained model with its pipeline's settings, on the whole split, as a task."""
    store = Store(root)
    folder = find(store, "train", run)
    manifest = read_manifest(folder)
    model = finished("train", manifest["identity"], manifest["label"])
    data = finished("dataset", manifest["inputs"]["data"], "dataset")
    name = manifest["label"].removeprefix("train ")
    training = read_spec(folder, TrainSpec)
    trained = family_that_trained(training)
    say_if_code_differs(training)
    settings = kind_named(trained.reads).settings
    earlier = [found["spec"] for found in store.manifests("evaluate") if found["inputs"]["model"] == model.identity]
    # An earlier version accepted the settings of every kind.
    given = {key: value for key, value in (earlier[-1] if earlier else {}).items() if key in settings.model_fields}
    spec = load_evaluation(settings, {**given, **dict.fromkeys(settings.WHOLE)}, overrides)
    spec.check(trained)
    open_dataset(store.artifact("dataset", data.identity)).require_split(spec.split)
    task = evaluation_task(model, data, name, {}, spec)
    with engine(store) as made:
        outcomes = made.make([task])
    for outcome in failures(outcomes):
        raise UserError(f"{outcome.task.title}: {outcome.error}")
    evaluation = json.loads((store.artifact("evaluate", task.identity) / "evaluation.json").read_text())
    click.echo(f"{name}: {evaluation['headline']} on {evaluation['units']:,} {evaluation['unit']}s")
    return 0
