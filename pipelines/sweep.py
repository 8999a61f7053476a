"""The pipeline `sweep`: tokenise -> cells -> fit -> report. Cells are durable: a larger sweep trains only new ones."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import click
import yaml

from pipelines.data import dataset_task, lengths_of, model_facts
from pipelines.design import CellPlan, cells_of
from pipelines.engine import engine, failures, make_again
from pipelines.recipe import Recipe
from pipelines.recipe import Search as SearchSection
from pipelines.training import execution_of, family_of, model_of, steps_of, train_spec, training_flops, training_task
from tasks.errors import UserError
from tasks.execute import LAUNCHER_BYTES, Outcome
from tasks.fit import spec as fit_spec
from tasks.fit.spec import Cell, Excluded, FitOptions, FitSpec
from tasks.report import spec as report_spec
from tasks.report.spec import ReportSpec
from tasks.search import VERSION as SEARCH_VERSION
from tasks.search import SearchSpec
from tasks.store import Store
from tasks.task import Resources, Task
from tasks.train.spec import TrainSpec


@dataclass(frozen=True)
class SweepCell:
    plan: CellPlan
    train: Task


@dataclass(frozen=True)
class SweepTasks:
    dataset: Task
    cells: list[SweepCell]


def sweep_tasks(recipe: Recipe, store: Store) -> SweepTasks:
    """The cells as tasks; what the fit and the report are made of is known when they have ended."""
    reads = family_of(recipe).reads
    dataset = dataset_task(recipe, store)
    base = model_of(recipe, model_facts(recipe, store), lengths_of(recipe, store, dataset, reads))
    plans = cells_of(recipe, base)
    assert recipe.sweep is not None
    if recipe.sweep.trunk:
        return SweepTasks(dataset, _trunks(recipe, plans, dataset))
    return SweepTasks(dataset, [SweepCell(plan, _cell(recipe, plan, dataset)) for plan in plans])


def _cell(recipe: Recipe, plan: CellPlan, dataset: Task) -> Task:
    """One training of its own, its learning rate by the width rule or from a search within the cell."""
    assert recipe.sweep is not None
    search = recipe.sweep.learning_rate
    inputs = {"data": dataset}
    if isinstance(search, SearchSection):
        inputs["search"] = _search(recipe, plan, search, dataset)
    spec = train_spec(
        recipe, plan.model, tokens=plan.tokens, batch=plan.batch, seed=plan.seed, searched="search" in inputs
    )
    return _train(recipe, plan, spec, inputs, plan.label)


def _search(recipe: Recipe, plan: CellPlan, search: SearchSection, dataset: Task) -> Task:
    short = train_spec(
        recipe,
        plan.model,
        tokens=max(plan.batch, round(search.share * plan.tokens)),
        batch=plan.batch,
        seed=plan.seed,
        searched=True,
    )
    return Task(
        name="search",
        version=SEARCH_VERSION,
        run="tasks.search:run",
        spec=SearchSpec(train=short, samples=search.samples, low=search.low, high=search.high),
        inputs={"data": dataset},
        label=f"search {plan.label}",
        # It only waits for its trials, which hold the cores; its memory keeps too many from waiting at once.
        resources=Resources(cpus=0, memory=LAUNCHER_BYTES),
        execution=execution_of(recipe, short),
        weight=search.samples * training_flops(short, plan.model.cost),
        tags={"sweep": recipe.name},
    )


def _trunks(recipe: Recipe, plans: list[CellPlan], dataset: Task) -> list[SweepCell]:
    """For each size one chain of constant-rate segments, and a cooldown branch off it for each count of tokens.

    A branch leaves the trunk where its cooldown starts; the next segment goes on from there, so that a larger count
    later adds one segment and one branch and repeats nothing (Hägele et al. 2024).
    """

    def trunk(plan: CellPlan) -> tuple[int, int]:
        return plan.seed, plan.width

    cells = []
    for _, group in groupby(sorted(plans, key=trunk), key=trunk):
        branches = sorted(group, key=lambda plan: plan.tokens)
        # The warm-up is that of the shortest branch: it must not depend on what is added later.
        warmup = round(recipe.train.schedule.warmup * steps_of(branches[0].tokens, branches[0].batch))
        segment: Task | None = None
        reached = 0
        for plan in branches:
            stop = steps_of(plan.tokens, plan.batch)
            leaves = stop - round(recipe.train.schedule.cooldown * stop)
            if not 0 < leaves < stop:
                raise UserError(
                    f"sweep.trunk: {plan.label} has {stop} steps, and a cooldown of {recipe.train.schedule.cooldown:g} "
                    f"of them leaves no {'branch' if leaves else 'trunk'}; train.schedule.cooldown or sweep.tokens "
                    "must change"
                )
            if leaves > reached:
                spec = train_spec(
                    recipe,
                    plan.model,
                    tokens=leaves * plan.batch,
                    batch=plan.batch,
                    seed=plan.seed,
                    start_step=reached,
                    warmup_steps=warmup,
                    kind="constant",
                )
                label = f"trunk N={plan.model.cost.parameters:,} steps {reached}-{leaves}"
                inputs = {"data": dataset, **({"start": segment} if segment else {})}
                segment = _train(recipe, plan, spec, inputs, label, role="trunk")
                reached = leaves
            assert segment is not None
            spec = train_spec(
                recipe,
                plan.model,
                tokens=plan.tokens,
                batch=plan.batch,
                seed=plan.seed,
                start_step=leaves,
                warmup_steps=warmup,
                kind="wsd",
            )
            cells.append(SweepCell(plan, _train(recipe, plan, spec, {"data": dataset, "start": segment}, plan.label)))
    return cells


def _train(
    recipe: Recipe, plan: CellPlan, spec: TrainSpec, inputs: Mapping[str, Task], label: str, role: str = "cell"
) -> Task:
    tags = {"sweep": recipe.name, "role": role, "width": str(plan.width)}
    return training_task(recipe, plan.model, spec, inputs, label, tags)


def fit_task(recipe: Recipe, cells: list[SweepCell], outcomes: Mapping[str, Outcome]) -> Task:
    """The fit over the cells that ended well; the others are excluded by name, each with its reason."""
    inputs: dict[str, Task] = {}
    listed, excluded = [], []
    for index, cell in enumerate(cells):
        outcome = outcomes[cell.train.identity]
        if not outcome.ok:
            excluded.append(Excluded(label=cell.plan.label, reason=outcome.error))
            continue
        name = f"cell-{index:04d}"
        inputs[name] = cell.train
        listed.append(Cell(input=name, label=cell.plan.label, budget=cell.plan.budget, seed=cell.plan.seed))
    return Task(
        name="fit",
        version=fit_spec.VERSION,
        run="tasks.fit.task:run",
        spec=FitSpec(name=recipe.name, options=FitOptions(), cells=tuple(listed), excluded=tuple(excluded)),
        inputs=inputs,
        label=f"fit {recipe.name}",
        tags={"sweep": recipe.name},
    )


def report_task(recipe: Recipe, fit: Task, dataset: Task, content: Mapping[str, object]) -> Task:
    return Task(
        name="report",
        version=report_spec.VERSION,
        run="tasks.report.task:run",
        spec=ReportSpec(
            title=recipe.name,
            description=f"The family {recipe.model.get('family', 'transformer')}, trained on {content['source']}.",
            recipe=yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
            data={
                "source": str(content["source"]),
                "tokens": f"{content['tokens']:,}",
                "fingerprint": str(content["fingerprint"]),
            },
            unit=recipe.data.unit,
            predict=recipe.name,
        ),
        inputs={"fit": fit, "data": dataset, **fit.inputs},
        label=f"report {recipe.name}",
        tags={"sweep": recipe.name},
    )


def sweep_recipe(recipe: Recipe, root: str, fresh: Sequence[str] = ()) -> int:
    """Runs the sweep and says what came out; the exit code (1 where a cell failed, though the rest was fitted)."""
    if recipe.sweep is None:
        raise UserError("sweep: is missing; for example sweep: {budgets: [1e12, 4e12], widths: [16, 32, 64]}")
    store = Store(root)
    tasks = sweep_tasks(recipe, store)
    trained = [cell.train for cell in tasks.cells]
    later = after_the_cells(recipe)
    again = make_again([name for name in fresh if name not in later], trained, store)
    planned = sum(cell.plan.flops for cell in tasks.cells)
    click.echo(f"{recipe.name}: {len(tasks.cells)} cells, {planned:.3g} FLOPs")
    with engine(store, recipe.mlflow) as made:
        outcomes = made.make(trained)
        failed = failures(outcomes)
        if not any(outcomes[task.identity].ok for task in trained):
            raise UserError(f"{recipe.name}: no cell was trained; {failed[0].task.title}: {failed[0].error}")
        fit = fit_task(recipe, tasks.cells, outcomes)
        report = report_task(recipe, fit, tasks.dataset, _data_content(store, tasks.dataset))
        make_again([name for name in fresh if name in later], [report], store, made=again)
        reported = made.make([report])
        failed += failures(reported)
    for outcome in failed:
        click.secho(f"reducible: {outcome.task.title}: {outcome.error}", fg="red", err=True)
    if not reported[report.identity].ok:
        return 1
    _say(recipe, root, store.artifact("fit", fit.identity), store.artifact("report", report.identity))
    return 1 if failed else 0


def after_the_cells(recipe: Recipe) -> set[str]:
    """Names and labels of the tasks that are known only when the cells have ended."""
    return {"fit", "report", f"fit {recipe.name}", f"report {recipe.name}"}


def _data_content(store: Store, dataset: Task) -> dict[str, object]:
    content = json.loads((store.artifact("dataset", dataset.identity) / "dataset.json").read_text())
    return {**content, "tokens": content["splits"]["train"]["tokens"]}


def _say(recipe: Recipe, root: str, fit_folder: Path, report_folder: Path) -> None:
    from tasks.fit.result import Fit
    from tasks.fit.summary import summary

    at = "" if root == ".reducible" else f" --root {shlex.quote(root)}"
    click.echo("\n" + summary(Fit.load(fit_folder / "fit.json")))
    click.echo(
        f"\n  report   {report_folder / 'report.html'}\n"
        f"  predict  reducible predict {shlex.quote(recipe.name)} --compute 1e15{at}\n"
        f"  browse   reducible ui{at}"
    )
