"""`reducible predict`: what to train with a budget, what a loss costs, or the loss of a model, from a fitted law."""

import json
import math
from pathlib import Path

import click

from reducible.pipelines.find import find
from reducible.tasks.errors import UserError
from reducible.tasks.fit.files import family_folder
from reducible.tasks.fit.fit_summary import model_text, models_text, prediction_text
from reducible.tasks.fit.numerals import number
from reducible.tasks.fit.predict import predict, predict_model
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.store import MANIFEST, Store


def print_prediction(
    sweep: str, compute: str | None, loss: float | None, as_json: bool, root: str, family: str | None = None
) -> None:
    """What to train with a budget, or what a loss costs.

    `sweep` is a sweep's name, the start of a fit's identity, or the path of a fit.json or of the folder of a fit.
    `family` picks one law of several.
    """
    answer = predict(
        load_fit(sweep, root, family), compute=None if compute is None else _positive("--compute", compute), loss=loss
    )
    click.echo(json.dumps(answer.to_dict(), indent=1) if as_json else prediction_text(answer))


def print_model(sweep: str, N: str, D: str, as_json: bool, root: str, family: str | None = None) -> None:
    """The loss of one model, its interval, and the penalty for being off the optimum at its compute."""
    answer = predict_model(load_fit(sweep, root, family), _positive("--N", N), _positive("--D", D))
    click.echo(json.dumps(answer.to_dict(), indent=1) if as_json else model_text(answer))


def print_models(sweep: str, table: str, as_json: bool, root: str, family: str | None = None) -> None:
    """The same for every row of a table with columns N and D, as a table or a list of objects."""
    from reducible.tasks.fit.plans import read_plans

    fit = load_fit(sweep, root, family)
    answers = [(plan.name, predict_model(fit, plan.N, plan.D)) for plan in read_plans(table)]
    if as_json:
        click.echo(json.dumps([{"name": name, **answer.to_dict()} for name, answer in answers], indent=1))
    else:
        click.echo(models_text(answers))


def load_fit(sweep: str, root: str, family: str | None) -> Fit:
    """The fit that the command names.

    Raises:
        UserError: there is none, it is no fit, or it is one of several families and none is chosen.
    """
    path = Path(sweep)
    if path.is_dir() and not (path / MANIFEST).is_file():
        path = _in_folder(path, family)
    elif not path.is_file():
        path = find(Store(root), "fit", _fit_of(Store(root), sweep, family)) / "fit.json"
    try:
        return Fit.load(path)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a fit.json; give a sweep's name or the fit.json of a fit") from None


def _in_folder(folder: Path, family: str | None) -> Path:
    """The fit.json that `reducible fit` has left in a folder."""
    if family is None and (folder / "fit.json").is_file():
        return folder / "fit.json"
    there = sorted(path.parent.name for path in folder.glob("*/fit.json"))
    if not there:
        raise UserError(f"{folder}: holds no fit.json" + (f" of several families, so no {family}" if family else ""))
    if family is None:
        raise UserError(f"{folder}: has a law for each of its families; add --family {', '.join(there)}")
    path = family_folder(folder, family) / "fit.json"
    if not path.is_file():
        raise UserError(f"--family {family}: {folder} has no such family; it has {', '.join(there)}")
    return path


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


def _positive(option: str, text: str) -> float:
    value = number(text, count=True)
    if value is None or not 0 < value < math.inf:
        what, such = {"--N": ("parameters", "7e9"), "--D": ("units", "2e12")}.get(option, ("FLOPs", "1e15"))
        raise UserError(f"{option} {text}: must be a number of {what} above 0, such as {such}")
    return value
