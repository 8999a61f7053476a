"""The pipeline `sweep`: tokenise -> cells -> fit -> report. A larger sweep trains only new cells.

With several families (sweep.families): the cells of all -> a fit for each -> compare -> one report.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click
import yaml

from reducible.models.families.registry import DEFAULT
from reducible.pipelines.engine import engine, failures, make_again
from reducible.pipelines.find import name_of
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.repeated_data import repeated_units, warning_of_repeats
from reducible.pipelines.run import say_failures
from reducible.pipelines.sweep.cells import FamilyCells, SweepTasks, after_the_cells, fit_name, sweep_tasks
from reducible.tasks.errors import UserError
from reducible.tasks.fit import comparison, fit_spec
from reducible.tasks.fit.fit_spec import Cell, Excluded, FitOptions, FitSpec
from reducible.tasks.known_entropy import agreement, known_loss
from reducible.tasks.report import report_spec
from reducible.tasks.report.report_spec import FamiliesReportSpec, ReportSpec
from reducible.tasks.words import typed
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, in_order


def fit_task(
    recipe: Recipe, family: FamilyCells, outcomes: Mapping[str, Outcome], unique_tokens: int | None = None
) -> Task:
    """The fit of the cells that succeeded. The others are excluded by name, each with its reason."""
    inputs: dict[str, Task] = {}
    listed, excluded = [], []
    for index, cell in enumerate(family.cells):
        outcome = outcomes[cell.train.identity]
        if not outcome.ok:
            excluded.append(Excluded(label=cell.plan.label, reason=outcome.error))
            continue
        name = f"cell-{index:04d}"
        inputs[name] = cell.train
        search = None
        if "search" in cell.train.inputs:
            search = f"search-{index:04d}"
            inputs[search] = cell.train.inputs["search"]
        plan = cell.plan
        listed.append(Cell(input=name, label=plan.label, budget=plan.budget, seed=plan.seed, search=search))
    name = fit_name(recipe, family.name)
    return Task(
        name="fit",
        version=fit_spec.VERSION,
        run="reducible.tasks.fit.fit_task:run",
        spec=FitSpec(
            name=name,
            options=FitOptions(),
            cells=tuple(listed),
            excluded=tuple(excluded),
            unique_tokens=unique_tokens,
        ),
        inputs=inputs,
        label=f"fit {name}",
        tags={"sweep": recipe.name} | {key: tag for key, tag in family.tags.items() if family.name},
    )


def compare_task(recipe: Recipe, fits: Mapping[str, Task]) -> Task:
    """The comparison of several families' fits: which overtakes which, and where."""
    return Task(
        name="compare",
        version=comparison.VERSION,
        run="reducible.tasks.fit.comparison:run",
        spec=comparison.CompareSpec(name=recipe.name, families=tuple(fits)),
        inputs=dict(fits),
        label=f"compare {recipe.name}",
        tags={"sweep": recipe.name},
    )


def report_task(
    recipe: Recipe,
    fits: Mapping[str, Task],
    dataset: Task,
    store: Store,
    title: str | None = None,
    confirmations: Mapping[str, Task] | None = None,
) -> Task:
    """One page for the sweep: about its fit, or about several families' fits and their comparison.

    title: default the recipe's name. confirmations: by the name of the input, runs that a law has recommended.
    """
    title = title or recipe.name
    content, units = _data_content(store, dataset), f"{recipe.data.unit}s"
    counted = {units: f"{content['splits']['train'][units]:,}"}
    known = recipe.data.known_entropy(content)
    shown: dict[str, Any] = {
        "title": title,
        "recipe": _recipe_text(recipe),
        "data": {"source": str(content["source"]), **counted, "fingerprint": str(content["fingerprint"])},
        "unit": recipe.data.unit,
        "known": vars(known) if known else None,
        "predict": title,
        "price": recipe.compute.price,
    }
    common: dict[str, Any] = {
        "name": "report",
        "version": report_spec.VERSION,
        "label": f"report {title}",
        "tags": {"sweep": title},
    }
    if "" in fits:
        family = recipe.model.get("family", DEFAULT)
        spec = ReportSpec(description=f"The family {family}, trained on {content['source']}.", **shown)
        inputs = {"fit": fits[""], "data": dataset, **_trainings(fits[""]), **(confirmations or {})}
        return Task(run="reducible.tasks.report.report_task:run", spec=spec, inputs=inputs, **common)
    described = f"The families {', '.join(fits)}, trained on {content['source']}."
    inputs = {"comparison": compare_task(recipe, fits), "data": dataset}
    for name, fit in fits.items():
        inputs[f"{name}/fit"] = fit
        inputs |= {f"{name}/{key}": cell for key, cell in _trainings(fit).items()}
    names = tuple(entry.title for entry in recipe.sweep.families) if recipe.sweep else ()
    several = FamiliesReportSpec(description=described, families=tuple(fits), declared=names, **shown)
    return Task(run="reducible.tasks.report.several_families:run", spec=several, inputs=inputs, **common)


def _trainings(fit: Task) -> dict[str, Task]:
    """The inputs of a fit whose learning curves a report shows: not the searches, which are in the fit's own files."""
    return {name: task for name, task in fit.inputs.items() if task.name == "train"}


def _recipe_text(recipe: Recipe) -> str:
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    if recipe.sweep is not None and recipe.sweep.families:
        # An optimizer that sets a default on purpose, against the recipe's own, must be shown.
        content["sweep"]["families"] = [
            entry.model_dump(mode="json", exclude_unset=True) for entry in recipe.sweep.families
        ]
    return yaml.safe_dump(content, sort_keys=False)


def sweep_recipe(recipe: Recipe, root: str, fresh: Sequence[str] = ()) -> int:
    """Runs the sweep and prints the result; returns the exit code (1 if a cell failed, even if the rest was fitted)."""
    if recipe.sweep is None:
        raise UserError("sweep: is missing; for example sweep: {budgets: [1e12, 4e12], widths: [16, 32, 64]}")
    store = Store(root)
    tasks = sweep_tasks(recipe, store)
    later = after_the_cells(recipe)
    again = make_again([name for name in fresh if name not in later], [cell.train for cell in tasks.cells], store)
    with engine(store, recipe.mlflow) as made:
        if tasks.provisional:
            outcomes = made.make([tasks.dataset])
            if not outcomes[tasks.dataset.identity].ok:
                return say_failures(failures(outcomes))
            tasks = sweep_tasks(recipe, store)  # how long its examples are is known only now
        planned = sum(task.weight for task in in_order([cell.train for cell in tasks.cells]))  # a trunk counts once
        click.echo(f"{recipe.name}: {len(tasks.cells)} cells, {planned:.3g} FLOPs")
        if warning := warning_of_repeats([cell.train for cell in tasks.cells], store):
            click.secho(warning, fg="yellow")
        outcomes = made.make([cell.train for cell in tasks.cells])
        failed = failures(outcomes)
        unique = repeated_units([cell.train for cell in tasks.cells], store)
        fits = _fits(recipe, tasks, outcomes, failed, unique)
        report = report_task(recipe, fits, tasks.dataset, store)
        make_again([name for name in fresh if name in later], [report], store, made=again)
        if recipe.sweep.families:  # one that cannot be fitted does not keep the others from their report
            outcomes = made.make(list(fits.values()))
            failed += failures(outcomes)
            fits = {name: fit for name, fit in fits.items() if outcomes[fit.identity].ok}
            if not fits:
                return say_failures(failed)
            report = report_task(recipe, fits, tasks.dataset, store)
        outcomes = made.make([report])
        failed += failures(outcomes)
    say_failures(failed)
    if not outcomes[report.identity].ok:
        return 1
    _say(recipe, root, fits, report, tasks.dataset, store)
    return 1 if failed else 0


def _fits(
    recipe: Recipe,
    tasks: SweepTasks,
    outcomes: Mapping[str, Outcome],
    failed: Sequence[Outcome],
    unique_tokens: int | None,
) -> dict[str, Task]:
    """A fit for each family with at least one trained cell."""
    trained = [family for family in tasks.families if any(outcomes[cell.train.identity].ok for cell in family.cells)]
    if not trained:
        raise UserError(f"{recipe.name}: no cell was trained; {failed[0].task.title}: {failed[0].error}")
    return {family.name: fit_task(recipe, family, outcomes, unique_tokens) for family in trained}


def _data_content(store: Store, dataset: Task) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.artifact("dataset", dataset.identity) / "dataset.json").read_text())
    return content


def _say(recipe: Recipe, root: str, fits: Mapping[str, Task], report: Task, dataset: Task, store: Store) -> None:
    from reducible.tasks.fit.fit_summary import families_summary, summary
    from reducible.tasks.fit.learning_rates import LearningRates
    from reducible.tasks.fit.overtaking import Comparison
    from reducible.tasks.fit.result import Fit

    at = "" if root == ".reducible" else f" --root {shlex.quote(root)}"
    found = {name: Fit.load(store.artifact("fit", fit.identity) / "fit.json") for name, fit in fits.items()}
    rates = {name: LearningRates.load(store.artifact("fit", fit.identity)) for name, fit in fits.items()}
    which, law = "", recipe.name
    if "" in found:
        click.echo("\n" + summary(found[""]))
        law = name_of(store, "fit", fits[""].identity, recipe.name)
    else:
        compared = store.artifact("compare", report.inputs["comparison"].identity)
        click.echo("\n" + families_summary(found, Comparison.load(compared / "comparison.json")))
        which = f" --family {next(iter(found))}"
    for name, one in rates.items():
        for sentence in one.sentences if one else ():
            click.echo(f"{f'{name}: ' if name else ''}{sentence}")
    if known := recipe.data.known_entropy(_data_content(store, dataset)):
        click.echo(f"\nthe loss is {known_loss(known, recipe.data.unit)}")
        for name, fit in found.items():
            click.echo(f"truth{', ' if name else ''}{name}: {agreement(known, fit)}")
    first = next(iter(found.values()))
    train = ""
    if first.law is not None and first.health.splits:
        flops = typed(10 * first.largest_compute)
        train = f"  train    reducible run --from-law {shlex.quote(law)}{which} --flops {flops}{at}\n"
    click.echo(
        f"\n  report   {store.artifact('report', report.identity) / 'report.html'}\n"
        f"  predict  reducible predict {shlex.quote(law)}{which} --compute 1e15{at}\n"
        f"{train}"
        f"  browse   reducible ui{at}"
    )
