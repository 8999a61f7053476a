"""`reducible predict`: what to train with a budget, what a loss costs, or the loss of a model, from a fitted law."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from reducible.pipelines.find import find
from reducible.tasks.errors import UserError
from reducible.tasks.fit.confirmation import FILE, Confirmation
from reducible.tasks.fit.files import family_folder
from reducible.tasks.fit.fit_summary import gain_text, model_text, models_text, prediction_text
from reducible.tasks.fit.numerals import number
from reducible.tasks.fit.predict import gain, model_within, predict, predict_model
from reducible.tasks.fit.price import Price, price_of
from reducible.tasks.fit.result import Estimate, Fit
from reducible.tasks.fit.unique_data import with_unique_data
from reducible.tasks.workflow.store import MANIFEST, Store


@dataclass(frozen=True)
class Asked:
    """Whose law to read, and how to answer."""

    sweep: str
    """A sweep's name, the start of a fit's identity, or the path of a fit.json or of the folder of a fit."""
    root: str
    family: str | None = None
    as_json: bool = False
    price: float | None = None
    """Per device-hour."""
    device_flops: str | None = None
    unique_tokens: str | None = None

    def fit(self) -> Fit:
        fit = load_fit(self.sweep, self.root, self.family)
        if self.unique_tokens is None:
            return fit
        return with_unique_data(fit, positive("--unique-tokens", self.unique_tokens))

    def price_of(self, fit: Fit) -> Price | None:
        """None: no price is asked for."""
        if self.price is None and self.device_flops is None:
            return None
        speed = None if self.device_flops is None else positive("--device-flops", self.device_flops)
        return price_of(fit, self.price, speed)

    def say(self, text: str, content: dict[str, Any], compute: Estimate, price: Price | None) -> None:
        """Prints the answer, with the price of its compute."""
        if self.as_json:
            click.echo(json.dumps({**content, **(price.to_dict(compute) if price else {})}, indent=1))
        else:
            click.echo(text + (f"\n{price.text(compute)}" if price else ""))


def print_prediction(asked: Asked, compute: str | None = None, loss: float | None = None) -> None:
    """What to train with a budget, or what a loss costs."""
    fit = asked.fit()
    price = asked.price_of(fit)
    answer = predict(fit, compute=None if compute is None else positive("--compute", compute), loss=loss)
    asked.say(prediction_text(answer), answer.to_dict(), answer.compute, price)


def print_gain(asked: Asked, factor: float, compute: str | None) -> None:
    """What so many times the compute gains, from a budget or from that of the largest run."""
    fit = asked.fit()
    price = asked.price_of(fit)
    answer = gain(fit, factor, None if compute is None else positive("--compute", compute))
    asked.say(gain_text(answer), answer.to_dict(), answer.after.compute, price)


def print_model(asked: Asked, N: str | None, D: str | None, compute: str | None) -> None:
    """The loss of one model, its interval, and the penalty for being off the optimum at its compute.

    Two of N, D and compute say which model.
    """
    fit = asked.fit()
    price = asked.price_of(fit)
    size, units = (None if text is None else positive(option, text) for option, text in (("--N", N), ("--D", D)))
    if size is None or units is None:
        assert compute is not None
        size, units = model_within(fit, positive("--compute", compute), size, units)
    answer = predict_model(fit, size, units)
    exact = Estimate(answer.compute, answer.compute, answer.compute)
    asked.say(model_text(answer), answer.to_dict(), exact, price)


def print_models(asked: Asked, table: str) -> None:
    """The same for every row of a table with columns N and D, as a table or a list of objects."""
    from reducible.tasks.fit.plans import read_plans

    fit = asked.fit()
    price = asked.price_of(fit)
    answers = [(plan.name, predict_model(fit, plan.N, plan.D)) for plan in read_plans(table)]
    costs = [price.to_dict(Estimate(one.compute)) if price else {} for _, one in answers]
    if asked.as_json:
        rows = [{"name": name, **one.to_dict(), **cost} for (name, one), cost in zip(answers, costs, strict=True)]
        click.echo(json.dumps(rows, indent=1))
    else:
        click.echo(models_text(answers, [None if price is None else price.figure(one.compute) for _, one in answers]))


def print_held(asked: Asked) -> None:
    """Whether the predictions of a law held: a line for each run that it recommended."""
    store = Store(asked.root)
    name = fit_of(store, asked.sweep, asked.family)
    find(store, "fit", name)  # there is such a law
    newest: dict[str, str] = {}  # of each run; a law that was fitted again has predicted it again
    for manifest in store.manifests("prediction"):
        if manifest["spec"]["law"] == name:
            newest.setdefault(manifest["spec"]["name"], manifest["identity"])
    made = reversed(newest.values())
    found = [Confirmation.load(store.artifact("prediction", identity) / FILE) for identity in made]
    if asked.as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=1))
    elif found:
        click.echo("\n".join(one.sentence for one in found))
    else:
        again = f" --family {asked.family}" if asked.family else ""
        click.echo(
            f"{name}: no run was trained by its law yet; reducible run --from-law {asked.sweep}{again} --flops FLOPS"
        )


def load_fit(sweep: str, root: str, family: str | None) -> Fit:
    """The fit that the command names.

    Raises:
        UserError: there is none, it is no fit, or it is one of several families and none is chosen.
    """
    path = Path(sweep)
    if path.is_dir() and not (path / MANIFEST).is_file():
        path = _in_folder(path, family)
    elif not path.is_file():
        path = find(Store(root), "fit", fit_of(Store(root), sweep, family)) / "fit.json"
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


def laws_in(sweep: str, root: str) -> list[str]:
    """The families that have a law each; empty if there is one law without a family's name."""
    path = Path(sweep)
    if path.is_dir() and not (path / MANIFEST).is_file():
        return [] if (path / "fit.json").is_file() else sorted(one.parent.name for one in path.glob("*/fit.json"))
    if path.is_file():
        return []
    labels = [str(manifest["label"]).removeprefix("fit ") for manifest in Store(root).manifests("fit")]
    return [] if sweep in labels else _families(labels, sweep)


def _families(labels: list[str], sweep: str) -> list[str]:
    """Oldest first: as the recipe names them."""
    of_sweep = [label.removeprefix(f"{sweep}/") for label in labels if label.startswith(f"{sweep}/")]
    return list(dict.fromkeys(reversed(of_sweep)))


def fit_of(store: Store, sweep: str, family: str | None) -> str:
    """The name of the fit to read."""
    labels = [str(manifest["label"]).removeprefix("fit ") for manifest in store.manifests("fit")]
    families = _families(labels, sweep)
    if family is None:
        if families and sweep not in labels:
            raise UserError(f"{sweep}: has a law for each of its families; add --family {', '.join(sorted(families))}")
        return sweep
    if family not in families:
        there = f"it has {', '.join(sorted(families))}" if families else "it is not a sweep of several families"
        raise UserError(f"--family {family}: {sweep} has no such family; {there}")
    return f"{sweep}/{family}"


def positive(option: str, text: str) -> float:
    value = number(text, count=True)
    if value is None or not 0 < value < math.inf:
        what, such = {"--N": ("parameters", "7e9"), "--D": ("units", "2e12"), "--device-flops": ("FLOP/s", "4e14")}.get(
            option, ("FLOPs", "1e15")
        )
        raise UserError(f"{option} {text}: must be a number of {what} above 0, such as {such}")
    return value
