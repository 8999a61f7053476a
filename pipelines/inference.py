"""`reducible sample` and `reducible evaluate`: what a trained model writes, and how well it predicts."""

import json

import click

from pipelines.engine import engine, failures
from pipelines.find import find
from pipelines.run import evaluation_task
from tasks.errors import UserError
from tasks.evaluate.spec import EvaluateSpec
from tasks.store import Store, read_manifest
from tasks.task import finished


def print_sample(
    run: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, root: str
) -> None:
    """Prints what the model makes of the prompt: a text's continuation, a pair's other side, a forecast."""
    from tasks.evaluate.spec import SampleOptions
    from tasks.evaluate.task import sample

    store = Store(root)
    folder = find(store, "train", run)
    manifest = read_manifest(folder)
    if not (folder / "model").is_dir():
        raise UserError(f"{run}: that training diverged and left no model")
    data = store.artifact("dataset", manifest["inputs"]["data"])
    click.echo(sample(folder, data, prompt, SampleOptions(tokens, temperature, top_k, seed)))


def evaluate_run(run: str, root: str) -> int:
    """Evaluates a trained model on the whole of its validation split, as a task like any other."""
    store = Store(root)
    folder = find(store, "train", run)
    manifest = read_manifest(folder)
    model = finished("train", manifest["identity"], manifest["label"])
    data = finished("dataset", manifest["inputs"]["data"], "dataset")
    name = manifest["label"].removeprefix("train ")
    task = evaluation_task(model, data, name, {}, EvaluateSpec(units=None))
    with engine(store) as made:
        outcomes = made.make([task])
    for outcome in failures(outcomes):
        raise UserError(f"{outcome.task.title}: {outcome.error}")
    evaluation = json.loads((store.artifact("evaluate", task.identity) / "evaluation.json").read_text())
    click.echo(f"{name}: {evaluation['headline']} on {evaluation['units']:,} {evaluation['unit']}s")
    return 0
