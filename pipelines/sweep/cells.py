"""The cells of a sweep as tasks: separate trainings, each with a search for its learning rate, or trunk branches."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from reducible.models.batches import BATCHES
from reducible.pipelines.evaluation import evaluation_of
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.recipe.recipe import Search as SearchSection
from reducible.pipelines.sweep.design import CellPlan, blamed, cells_of, recipes_of
from reducible.pipelines.sweep.sharing import share_of_gpu
from reducible.pipelines.training import (
    execution_of,
    family_of,
    model_of,
    steps_of,
    train_spec,
    training_flops,
    training_task,
)
from reducible.tasks.colours import family_colour
from reducible.tasks.errors import UserError
from reducible.tasks.train.learning_rate_search import VERSION as SEARCH_VERSION
from reducible.tasks.train.learning_rate_search import SearchSpec
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.on_ray import LAUNCHER_BYTES
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Resources, Task


@dataclass(frozen=True)
class SweepCell:
    plan: CellPlan
    train: Task


@dataclass(frozen=True)
class FamilyCells:
    """The cells of one family. Its name is empty if the sweep has only one."""

    name: str
    recipe: Recipe
    cells: list[SweepCell]
    tags: Mapping[str, str]
    """The tags of all its runs in MLflow."""


@dataclass(frozen=True)
class SweepTasks:
    dataset: Task
    families: list[FamilyCells]
    provisional: bool
    """Whether the dataset is not made yet, and the lengths of its examples decide the cells of a budget."""

    @property
    def cells(self) -> list[SweepCell]:
        return [cell for family in self.families for cell in family.cells]


def sweep_tasks(recipe: Recipe, store: Store) -> SweepTasks:
    """The cells as tasks. The inputs of the fit and the report are known when these have ended.

    Raises:
        UserError: a family cannot read the data, a section gives no model, or the cells give no sweep.
    """
    recipes = recipes_of(recipe)
    reads = _reads(recipes)
    dataset = recipe.data.dataset_task(recipe.name, store)
    provisional = not BATCHES[reads].packed and not store.committed("dataset", dataset.identity)
    facts, lengths = recipe.data.facts(store), recipe.data.lengths(store, dataset, reads)
    families = []
    for index, (name, own) in enumerate(recipes.items()):
        with blamed(name):
            base = model_of(own, facts, lengths)
            evaluation_of(own, base.family)  # a sweep evaluates nothing, and its recipe is run later too
            plans = cells_of(own, base, name, provisional)
            tags = {"sweep": recipe.name, "family": name or base.family.name}
            if name:
                tags["mlflow.runColor"] = family_colour(index)
            families.append(FamilyCells(name, own, _cells(own, plans, dataset, tags, provisional), tags))
    return SweepTasks(dataset, families, provisional)


def fit_name(recipe: Recipe, family: str) -> str:
    return f"{recipe.name}/{family}" if family else recipe.name


def after_the_cells(recipe: Recipe) -> set[str]:
    """The names and labels of the tasks that are known only when the cells have ended."""
    families = [entry.title for entry in recipe.sweep.families] if recipe.sweep else []
    fits = {f"fit {fit_name(recipe, family)}" for family in families or [""]}
    comparison_too = {"compare", f"compare {recipe.name}"} if families else set()
    return {"fit", "report", f"report {recipe.name}"} | fits | comparison_too


def _reads(recipes: Mapping[str, Recipe]) -> str:
    """The kind of data that all families read. If they differed, their losses would have different units."""
    kinds = {}
    for name, own in recipes.items():
        with blamed(name):
            kinds[name] = family_of(own).reads
    (first, reads), *others = kinds.items()
    for name, other in others:
        if other != reads:
            raise UserError(
                f"sweep.families: {first} reads {reads} and {name} reads {other}, so their losses cannot be compared; "
                "put them into separate sweeps"
            )
    return reads


def _cells(
    recipe: Recipe, plans: list[CellPlan], dataset: Task, tags: Mapping[str, str], provisional: bool
) -> list[SweepCell]:
    assert recipe.sweep is not None
    if recipe.sweep.trunk:
        return _trunks(recipe, plans, dataset, tags, provisional)
    return [SweepCell(plan, cell_task(recipe, plan, dataset, tags)) for plan in plans]


def cell_task(recipe: Recipe, plan: CellPlan, dataset: Task, tags: Mapping[str, str]) -> Task:
    """A cell as a training of its own. Its learning rate is by the width rule, or from a search in the cell."""
    assert recipe.sweep is not None
    search = recipe.sweep.learning_rate
    inputs = {"data": dataset}
    if isinstance(search, SearchSection):
        inputs["search"] = _search(recipe, plan, search, dataset, tags)
    spec = train_spec(
        recipe, plan.model, tokens=plan.tokens, batch=plan.batch, seed=plan.seed, searched="search" in inputs
    )
    return _train(recipe, plan, spec, inputs, plan.label, tags)


def _search(recipe: Recipe, plan: CellPlan, search: SearchSection, dataset: Task, tags: Mapping[str, str]) -> Task:
    tokens = max(plan.batch, round(search.share * plan.tokens))

    def short(batch: int) -> TrainSpec:
        return train_spec(recipe, plan.model, tokens=tokens, batch=batch, seed=plan.seed, searched=True)

    sequence = recipe.data.sequence
    sizes = {max(1, round(factor * plan.batch / sequence)) * sequence for factor in search.batches} - {plan.batch}
    own, others = short(plan.batch), tuple(short(size) for size in sorted(sizes) if size <= tokens)
    trainings = (own, *others)
    return Task(
        name="search",
        version=SEARCH_VERSION,
        run="reducible.tasks.train.learning_rate_search:run",
        spec=SearchSpec(train=own, samples=search.samples, low=search.low, high=search.high, batches=others),
        inputs={"data": dataset},
        label=f"search {plan.label}",
        # It only waits for its trials, which hold the cores. Its memory limits how many wait at once.
        resources=Resources(cpus=0, memory=LAUNCHER_BYTES),
        execution=execution_of(recipe, own),
        weight=search.samples * sum(training_flops(one, plan.model.cost) for one in trainings),
        retries=recipe.compute.retries,
        tags=tags,
    )


def _trunks(
    recipe: Recipe, plans: list[CellPlan], dataset: Task, tags: Mapping[str, str], provisional: bool
) -> list[SweepCell]:
    """For each size, a trunk of constant-rate segments, and a cooldown branch from it for each of its cells.

    A branch leaves the trunk where its cooldown starts, and the next segment continues from there. So a longer cell
    that is added later needs one more segment and one branch, and repeats nothing (Hägele et al. 2024).
    """

    def trunk(plan: CellPlan) -> tuple[int, int]:
        return plan.seed, plan.width

    cells = []
    for _, group in groupby(sorted(plans, key=trunk), key=trunk):
        branches = sorted(group, key=lambda plan: plan.tokens)
        # Warm-up and horizon are those of the shortest branch, because they must not depend on what is added later.
        shortest = steps_of(branches[0].tokens, branches[0].batch)
        shared: dict[str, Any] = {
            "warmup_steps": round(recipe.train.schedule.warmup * shortest),
            "horizon": shortest,
        }
        segment: Task | None = None
        reached = 0
        for plan in branches:
            leaves = _leaves(recipe, plan, provisional)
            own = shared | {"batch": plan.batch, "seed": plan.seed}
            if leaves > reached:
                tokens = leaves * plan.batch
                spec = train_spec(recipe, plan.model, tokens=tokens, start_step=reached, kind="constant", **own)
                whose = f"{plan.family} " if plan.family else ""
                which = f" seed {plan.seed}" if plan.seed else ""
                label = f"{whose}trunk N={plan.model.cost.parameters:,}{which} steps {reached}-{leaves}"
                inputs = {"data": dataset, **({"start": segment} if segment else {})}
                segment = _train(recipe, plan, spec, inputs, label, tags, role="trunk")
                reached = leaves
            assert segment is not None
            spec = train_spec(recipe, plan.model, tokens=plan.tokens, start_step=leaves, kind="wsd", **own)
            inputs = {"data": dataset, "start": segment}
            cells.append(SweepCell(plan, _train(recipe, plan, spec, inputs, plan.label, tags)))
    return cells


def _leaves(recipe: Recipe, plan: CellPlan, provisional: bool) -> int:
    """The step at which a cell leaves its trunk: where its cooldown starts."""
    stop = steps_of(plan.tokens, plan.batch)
    leaves = stop - round(recipe.train.schedule.cooldown * stop)
    if 0 < leaves < stop:
        return leaves
    if provisional:  # the number of steps is a guess too
        return max(1, stop - 1)
    raise UserError(
        f"sweep.trunk: {plan.label} has {stop} steps, and a cooldown of {recipe.train.schedule.cooldown:g} "
        f"of them leaves no {'branch' if leaves else 'trunk'}; train.schedule.cooldown, or the cell's length, "
        "must change"
    )


def _train(
    recipe: Recipe,
    plan: CellPlan,
    spec: TrainSpec,
    inputs: Mapping[str, Task],
    label: str,
    tags: Mapping[str, str],
    role: str = "cell",
) -> Task:
    return training_task(
        recipe,
        plan.model,
        spec,
        inputs,
        label,
        {**tags, "role": role, "width": str(plan.width)},
        share_of_gpu(recipe, spec, plan.model.cost.training_flops_per_unit),
    )
