"""`reducible sample` and `reducible evaluate`: what a trained model writes, and how well it predicts."""

import json

import click

from pipelines.engine import engine, failures
from pipelines.find import find
from pipelines.run import evaluation_task
from tasks.errors import UserError
from tasks.evaluate import EvaluateSpec
from tasks.store import Store, read_manifest
from tasks.task import finished


def print_sample(
    run: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, root: str
) -> None:
    """Prints the prompt and what the model writes after it."""
    from models.sampling import generate
    from models.saved import load_model
    from tasks.dataset import open_dataset

    store = Store(root)
    folder = find(store, "train", run)
    manifest = read_manifest(folder)
    if not (folder / "model").is_dir():
        raise UserError(f"{run}: that training diverged and left no model")
    tokenizer = open_dataset(store.artifact("dataset", manifest["inputs"]["data"])).tokenizer
    model = load_model(folder / "model")
    start = [tokenizer.separator, *(int(token) for token in tokenizer.encode_batch([prompt])[0])]
    written = generate(model, start, tokens, temperature=temperature, top_k=top_k, seed=seed)
    click.echo(prompt + tokenizer.decode([int(token) for token in written]))


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
    per_byte = evaluation["bits_per_byte"]
    click.echo(
        f"{name}: {evaluation['loss']:.4f} ± {1.96 * evaluation['loss_standard_error']:.4f} nats per token, "
        f"perplexity {evaluation['perplexity']:.3f}"
        + (f", {per_byte:.4f} bits per byte" if per_byte is not None else "")
        + f" on {evaluation['units']:,} tokens"
    )
    return 0
