"""`--from-law SWEEP --flops C`: trains the model that a law recommends, holds it against the law, fits the law anew.

Its size is the rung of the family's ladder nearest to the law's N*, its data, seed, batch and learning rate are the
sweep's. The law with the run in it is a fit of its own, named as the run; the sweep's stays.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from reducible.models.cost.size_ladder import sized
from reducible.pipelines.engine import engine, failures, make_again
from reducible.pipelines.evaluation import evaluation_of
from reducible.pipelines.find import find, name_of
from reducible.pipelines.predict import fit_of
from reducible.pipelines.recipe.load import recipe_of_text
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.recipe.recipe import Search as SearchSection
from reducible.pipelines.run import RunTasks, after_training, print_result, say_failures
from reducible.pipelines.sweep.cells import cell_task
from reducible.pipelines.sweep.design import CellPlan, recipes_of
from reducible.pipelines.sweep.sweep import report_task
from reducible.pipelines.training import Model, batch_units, family_of, model_of, scaled
from reducible.tasks.errors import UserError
from reducible.tasks.fit import confirmation, fit_spec
from reducible.tasks.fit.confirmation import Confirmation, ConfirmationSpec
from reducible.tasks.fit.fit_spec import Cell, FitSpec
from reducible.tasks.fit.learning_rates import LearningRates
from reducible.tasks.fit.predict import ModelPrediction, predict, predict_model
from reducible.tasks.fit.price import price_of
from reducible.tasks.fit.result import Estimate, Fit, Prediction
from reducible.tasks.words import typed
from reducible.tasks.workflow.store import Store, read_spec
from reducible.tasks.workflow.task import Task, finished

if TYPE_CHECKING:
    from reducible.pipelines.plan.memory import Asked

HOW = ("compute.", "evaluate.", "mlflow=", "train.checkpointing=")
"""What may be overridden: where and how it runs. All else is the sweep's."""


@dataclass(frozen=True)
class Source:
    """The law, and the sweep that it comes from."""

    name: str
    fit: Fit
    spec: FitSpec
    made: Mapping[str, Any]
    """The fit's manifest."""
    report: Mapping[str, Any]
    """The manifest of its report."""
    rates: LearningRates | None
    """What its searches found, if it searched its learning rates."""
    recipe: Recipe
    """The sweep's, with the model, optimizer and widths of the law's family."""

    @property
    def family(self) -> str:
        """Its name in a sweep of several."""
        return self.name.rpartition("/")[2] if "/" in self.name else ""

    @property
    def embeddings(self) -> bool:
        """Whether its N counts them."""
        return self.fit.counts == "parameters"

    def size_of(self, model: Model) -> float:
        """N of a model as the law counts it."""
        cost = model.cost
        return float(cost.parameters if self.embeddings else cost.parameters_without_embeddings)


@dataclass(frozen=True)
class Recommended:
    """What the law recommends, and the tasks that make it."""

    name: str
    source: Source
    best: Prediction
    expected: ModelPrediction
    cell: CellPlan
    rate: str
    """Where its learning rate comes from, in words."""
    run: RunTasks
    confirmation: Task
    fit: Task
    report: Task

    @property
    def targets(self) -> list[Task]:
        return [self.run.summary, self.report]


def run_from_law(
    sweep: str, flops: float, family: str | None, overrides: Sequence[str], root: str, fresh: Sequence[str] = ()
) -> int:
    """Trains the recommended model and prints what came of it; returns the exit code."""
    store = Store(root)
    chosen = recommended(sweep, flops, family, overrides, store)
    recipe = chosen.source.recipe
    click.echo(recommendation(chosen))
    make_again(fresh, chosen.targets, store)
    with engine(store, recipe.mlflow) as made:
        outcomes = made.make(chosen.targets)
    failed = failures(outcomes)
    say_failures(failed)
    if not store.committed("train", chosen.run.train.identity):
        return 1
    code = 1 if failed else 0
    if store.committed("summary", chosen.run.summary.identity):
        code |= print_result(recipe.model_copy(update={"name": chosen.name}), chosen.run, store, root)
    if not outcomes[chosen.report.identity].ok:
        return 1
    found = Confirmation.load(store.artifact("prediction", chosen.confirmation.identity) / confirmation.FILE)
    after = Fit.load(store.artifact("fit", chosen.fit.identity) / "fit.json")
    at = "" if root == ".reducible" else f" --root {shlex.quote(root)}"
    law = name_of(store, "fit", chosen.fit.identity, chosen.name)
    click.echo(
        f"\n{found.sentence}\n"
        f"the law with it in: {after.health.verdict} (before: {chosen.source.fit.health.verdict})\n"
        f"  report   {store.artifact('report', chosen.report.identity) / 'report.html'}\n"
        f"  predict  reducible predict {shlex.quote(law)} --compute {typed(10 * flops)}{at}"
    )
    return code


def plan_from_law(
    sweep: str,
    flops: float,
    family: str | None,
    overrides: Sequence[str],
    root: str,
    fresh: Sequence[str],
    asked: "Asked | None" = None,
) -> None:
    """Prints what the law recommends, and what would run."""
    from reducible.pipelines.plan.plan import print_targets

    store = Store(root)
    chosen = recommended(sweep, flops, family, overrides, store)
    click.echo(recommendation(chosen))
    recipe = chosen.source.recipe.model_copy(update={"sweep": None})
    print_targets(recipe, store, chosen.targets, fresh, asked)


def recommendation(chosen: Recommended) -> str:
    """What will be trained, and the loss that the law expects of it."""
    best, cell, expected = chosen.best, chosen.cell, chosen.expected
    size, recipe = cell.model.cost.parameters, chosen.source.recipe
    lines = [
        f"{chosen.source.name} at {cell.budget:.3g} FLOPs ({best.ratio:.3g} times its largest run): "
        f"N* = {best.N.value:.3g} [{best.N.low:.3g}, {best.N.high:.3g}], "
        f"D* = {best.D.value:.3g} [{best.D.low:.3g}, {best.D.high:.3g}]",
        f"  {chosen.name}: width {cell.width}, {size:,} parameters, {cell.tokens:,} "
        f"{recipe.data.unit}s, batch {cell.batch:,}; {chosen.rate}",
        f"  predicted loss {expected.loss}",
    ]
    lines += [f"  {line}" for line in _cost(chosen.source.fit, recipe.compute.price, cell.flops)]
    return "\n".join([*lines, *(f"  note: {text}" for text in expected.warnings)])


def _cost(fit: Fit, price: float | None, flops: float) -> list[str]:
    if price is None:
        return []
    try:
        found = price_of(fit, price)
    except UserError:  # no reason not to train
        return ["cost unknown: the sweep's runs did not measure the speed of a device"]
    return found.text(Estimate(flops)).splitlines() if found else []


def recommended(sweep: str, flops: float, family: str | None, overrides: Sequence[str], store: Store) -> Recommended:
    """The model that the law recommends for a budget, as tasks.

    Raises:
        UserError: there is no law, it does not say how to split compute, the budget is below the smallest run, or the
            sweep's data are no longer there.
    """
    source = _source(sweep, family, overrides, store)
    best = _best(source, flops)
    recipe = source.recipe
    dataset = recipe.data.dataset_task(recipe.name, store)
    if dataset.identity != source.report["inputs"].get("data"):
        raise UserError(
            f"{source.name}: its data have changed since, so a loss on them cannot be held against its law; "
            "run the sweep again"
        )
    lengths = recipe.data.lengths(store, dataset, family_of(recipe).reads)
    model = _rung(model_of(recipe, recipe.data.facts(store), lengths), best.N.value, source.embeddings)
    recipe, cell, rate = _cell(source, model, flops)
    name = f"{source.name.replace('/', '-')}-{typed(flops)}"
    # It is a run like any other, with a model to evaluate and to sample from, and a member of the new law's view.
    tags = {"pipeline": name, "sweep": name, "family": source.family or model.family.name}
    train = replace(cell_task(recipe, cell, dataset, tags), label=f"train {name}")
    run = after_training(name, model, dataset, train, evaluation_of(recipe, model.family))
    held, fit = _prediction_task(source, name, train), _fit_task(source, name, cell, train)
    earlier = {
        key: finished("prediction", identity)
        for key, identity in source.report["inputs"].items()
        if key.startswith("prediction-")
    }
    predictions = {**earlier, f"prediction-{len(earlier):04d}": held}
    report = report_task(source.recipe, {"": fit}, dataset, store, title=name, confirmations=predictions)
    expected = predict_model(source.fit, source.size_of(model), float(cell.tokens))
    return Recommended(name, source, best, expected, cell, rate, run, held, fit, report)


def _cell(source: Source, model: Model, flops: float) -> tuple[Recipe, CellPlan, str]:
    """The recipe with the run's learning rate, its cell, and where the rate comes from."""
    tokens = round(flops / model.cost.training_flops_per_unit)
    recipe, rate = _with_rate(source, source.size_of(model), float(tokens))
    units = batch_units(recipe, model, tokens, _batch(source, recipe, flops, source.size_of(model), tokens))
    width = int(model.config.width)
    cell = CellPlan(model, width, tokens, units, recipe.train.seed, float(flops), source.family)
    if tokens < units:
        raise UserError(f"--flops {flops:g}: is less than one step of {cell.label} ({tokens} of {units} target units)")
    return recipe, cell, rate


def _prediction_task(source: Source, name: str, train: Task) -> Task:
    """What the law said, by the fit as it stands, beside what came."""
    return Task(
        name="prediction",
        version=confirmation.VERSION,
        run="reducible.tasks.fit.confirmation:run",
        spec=ConfirmationSpec(name=name, law=source.name),
        inputs={"fit": finished("fit", source.made["identity"], f"fit {source.name}"), "model": train},
        label=f"prediction {name}",
        tags={"pipeline": name, "sweep": name},
    )


def _fit_task(source: Source, name: str, cell: CellPlan, train: Task) -> Task:
    """The law's own cells and the run. The trainings behind the law become members of the new law's view too."""
    key = f"confirming-{len(source.spec.cells):04d}"
    search = {f"search-{key}": train.inputs["search"]} if "search" in train.inputs else {}
    entry = Cell(input=key, label=name, budget=cell.budget, seed=cell.seed, search=next(iter(search), None))
    labels = {one.input: one.label for one in source.spec.cells}
    before = {
        one: finished("search" if one.startswith("search-") else "train", made, labels.get(one, ""), {"sweep": name})
        for one, made in source.made["inputs"].items()
    }
    return Task(
        name="fit",
        version=fit_spec.VERSION,
        run="reducible.tasks.fit.fit_task:run",
        spec=source.spec.model_copy(update={"name": name, "cells": (*source.spec.cells, entry)}),
        inputs={**before, key: train, **search},
        label=f"fit {name}",
        tags={"sweep": name},
    )


def _source(sweep: str, family: str | None, overrides: Sequence[str], store: Store) -> Source:
    for override in overrides:
        if not override.startswith(HOW):
            raise UserError(
                f"{override}: --from-law trains what the sweep's law recommends; only compute, evaluate, mlflow and "
                "train.checkpointing can be set"
            )
    folder = find(store, "fit", fit_of(store, sweep, family))
    made = store.manifest("fit", folder.name)
    name = str(made["label"]).removeprefix("fit ")
    inputs = ("fit", f"{name.rpartition('/')[2]}/fit")
    reports = (
        manifest
        for manifest in store.manifests("report")
        if any(manifest["inputs"].get(key) == made["identity"] for key in inputs)
    )
    report = next(reports, None)
    if report is None:
        raise UserError(f"{name}: its fit has no report, which holds the sweep's recipe; run the sweep again")
    recipe = recipe_of_text(report["spec"]["recipe"], f"the recipe of {name}", overrides)
    recipes = recipes_of(recipe)
    own = recipes.get("") or recipes[name.rpartition("/")[2]]
    fit, rates = Fit.load(folder / "fit.json"), LearningRates.load(folder)
    return Source(name, fit, read_spec(folder, FitSpec), made, report, rates, own)


def _best(source: Source, flops: float) -> Prediction:
    """The law's optimum at the budget."""
    fit = source.fit
    smallest = min((run.C for run in fit.used), default=math.inf)
    if fit.law is not None and flops < smallest:
        raise UserError(
            f"--flops {flops:g}: is below the smallest run of {source.name}, {smallest:.3g}; the law says nothing there"
        )
    best = predict(fit, compute=flops)
    if not best.splits:
        raise UserError(f"the law {fit.form.formula} does not say how to split compute between N and D")
    return best


def _rung(base: Model, parameters: float, embeddings: bool) -> Model:
    """The member of the family that is nearest to the law's N*."""
    config = sized(base.family, base.config, parameters, base.lengths, embeddings)
    return scaled(base, config.width)


def _batch(source: Source, recipe: Recipe, flops: float, N: float, tokens: int) -> int | None:
    """The batch of the run, in whole sequences: by the law of the sweep's searches, or on the line through its batches.

    None: that of train.batch, or its default.
    """
    sweep = recipe.sweep
    if source.rates is not None and source.rates.batch_law is not None:
        return _sequences(recipe, source.rates.batch_law.at(N, float(tokens)).value)
    if sweep is None or not sweep.batches:
        return None
    if len(set(sweep.batches)) == 1:
        return sweep.batches[0]
    amounts, asked = (sweep.budgets, flops) if sweep.budgets else (sweep.tokens, tokens)
    line = np.polyfit(np.log(np.array(amounts, dtype=float)), np.log(np.array(sweep.batches, dtype=float)), 1)
    return _sequences(recipe, math.exp(float(np.polyval(line, math.log(asked)))))


def _sequences(recipe: Recipe, batch: float) -> int:
    """The nearest power of two of sequences."""
    return int(recipe.data.sequence * 2 ** max(0, round(math.log2(batch / recipe.data.sequence))))


def _with_rate(source: Source, N: float, D: float) -> tuple[Recipe, str]:
    """The recipe of the run, and in words where its learning rate comes from.

    If the sweep searched its rates, it is that of their law; if they gave no law, the run searches as the cells did.
    """
    recipe = source.recipe
    assert recipe.sweep is not None
    search = recipe.sweep.learning_rate
    if not isinstance(search, SearchSection):
        return recipe, f"learning rate {recipe.train.optimizer.learning_rate:g} by the width rule"
    if source.rates is None or source.rates.law is None:
        reason = "" if source.rates is None else f" ({source.rates.law_sentence})"
        return recipe, f"learning rate from a search of {search.samples} in the run, as in the cells{reason}"
    best = source.rates.law.at(N, D)
    optimizer = recipe.train.optimizer.model_copy(update={"learning_rate": float(f"{best.value:.3g}")})
    changed = {
        "train": recipe.train.model_copy(update={"optimizer": optimizer}),
        "sweep": recipe.sweep.model_copy(update={"learning_rate": "rule"}),
    }
    return recipe.model_copy(update=changed), f"learning rate {best} by the law of the sweep's searches"
