"""`reducible predict`: what to train with a budget, or what a loss costs, read from a fitted law."""

import json
from pathlib import Path

import click

from reducible.pipelines.find import find
from reducible.tasks.count import parse_count
from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit_summary import prediction_text
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.store import Store


def print_prediction(
    sweep: str, compute: str | None, loss: float | None, as_json: bool, root: str, family: str | None = None
) -> None:
    """`sweep` is a sweep's name, the start of a fit's identity, or the path of a fit.json.

    `family` picks one law of a sweep of several families.
    """
    if (compute is None) == (loss is None):
        raise UserError("predict: give one of --compute FLOPS and --loss NATS")
    path = Path(sweep)
    if not path.is_file():
        path = find(Store(root), "fit", _fit_of(Store(root), sweep, family)) / "fit.json"
    try:
        fit = Fit.load(path)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a fit.json; give a sweep's name or the fit.json of a fit") from None
    answer = predict(fit, compute=None if compute is None else _flops(compute), loss=loss)
    click.echo(json.dumps(answer.to_dict(), indent=1) if as_json else prediction_text(answer))


def _fit_of(store: Store, sweep: str, family: str | None) -> str:
    """The name of the fit to read."""
    labels = [str(manifest["label"]).removeprefix("fit ") for manifest in store.manifests("fit")]
    families = list(dict.fromkeys(label.removeprefix(f"{sweep}/") for label in labels if label.startswith(f"{sweep}/")))
    if family is None:
        if families and sweep not in labels:
            raise UserError(f"{sweep}: has a law for each of its families; add --family {', '.join(sorted(families))}")
        return sweep
    if family not in families:
        there = f"it has {', '.join(sorted(families))}" if families else "it is not a sweep of several families"
        raise UserError(f"--family {family}: {sweep} has no such family; {there}")
    return f"{sweep}/{family}"


def _flops(text: str) -> float:
    try:
        value = float(parse_count(text))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--compute {text}: must be a number of FLOPs above 0, such as 1e15")
    return value
