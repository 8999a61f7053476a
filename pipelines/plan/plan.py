"""Says what would run and why, what it costs and about how long it takes. Runs nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
import yaml
from pydantic import BaseModel

from reducible.pipelines.engine import to_make_again
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.repeated_data import warning_of_repeats
from reducible.pipelines.run import run_tasks
from reducible.pipelines.sweep.cells import after_the_cells, sweep_tasks
from reducible.pipelines.training import SHARE_OF_PEAK, cost_at
from reducible.tasks.known_entropy import known_loss
from reducible.tasks.train.folders import CHECKPOINTS, complete
from reducible.tasks.train.optimizers.registry import optimizer_kind
from reducible.tasks.words import byte_count, duration, plural
from reducible.tasks.workflow.code_version import code_version
from reducible.tasks.workflow.execute import pending
from reducible.tasks.workflow.identity import KnowsMore, canonical
from reducible.tasks.workflow.record import flatten
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, description, in_order

if TYPE_CHECKING:
    from reducible.pipelines.plan.memory import Asked


def print_plan(recipe: Recipe, root: str, fresh: Sequence[str], settings: bool, asked: "Asked | None" = None) -> None:
    store = Store(root)
    provisional = False
    if recipe.sweep is not None:
        cells = sweep_tasks(recipe, store)
        provisional = cells.provisional
        targets = [cell.train for cell in cells.cells]
        fresh = [name for name in fresh if name not in after_the_cells(recipe)]
    else:
        run = run_tasks(recipe, store)
        targets, recipe = [run.summary], recipe.model_copy(update={"evaluate": run.evaluate.spec.model_dump()})
    if settings:
        click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    print_targets(recipe, store, targets, fresh, asked, provisional)


def print_targets(
    recipe: Recipe,
    store: Store,
    targets: list[Task],
    fresh: Sequence[str],
    asked: "Asked | None" = None,
    provisional: bool = False,
) -> None:
    """What would run to make the targets and why, what it costs, the memory it takes."""
    again = to_make_again(fresh, targets)
    training = [task for task in in_order(targets) if task.name == "train" and task.run]
    waiting = {task.identity for task in pending(store, targets)} | again.keys()
    lines = [
        (task, *state_of(store, task, task.identity in waiting, again.get(task.identity, "")))
        for task in in_order(targets)
    ]
    for (_, state, why), group in groupby(lines, key=lambda line: (line[0].name, *line[1:])):
        tasks = [line[0] for line in group]
        title = tasks[0].title if len(tasks) == 1 else f"{tasks[0].title} ... {tasks[-1].title} ({len(tasks)} tasks)"
        click.echo(f"  {state:9} {title}  {click.style(why, dim=True)}")
    if known := recipe.data.known_entropy(None):
        click.echo(f"  the loss is {known_loss(known, recipe.data.unit)}")
    if warning := warning_of_repeats(training, store):
        click.echo(f"  {warning}")
    if recipe.sweep is not None:
        several = "a fit for each family, what overtakes what" if recipe.sweep.families else "fit"
        click.echo(f"  then      {several} and report, over the cells that finish")
    if provisional:
        click.echo("  the cells are a guess: the cost of a unit is known once the dataset is made")
    _print_cost(recipe, training, waiting, here=asked is None or asked.device is None)
    if training:
        from reducible.pipelines.plan.memory import Asked, print_memory

        print_memory(recipe, training, asked or Asked())


def state_of(store: Store, task: Task, waits: bool, again: str = "") -> tuple[str, str]:
    """("done" | "will run" | "not needed", why)."""
    if again:
        return "will run", again
    if store.committed(task.name, task.identity):
        made_by = store.manifest(task.name, task.identity)["code"]
        other = f"made by other code ({made_by[:12]})" if made_by != code_version() else ""
        return "done", other
    if not waits:
        return "not needed", "the tasks that need it are done"
    checkpoints = complete(store.work(task.name, task.identity) / CHECKPOINTS)
    if checkpoints:
        return "will run", f"continues from {checkpoints[-1].name}"
    return "will run", why_new(store, task)


def why_new(store: Store, task: Task) -> str:
    """Which field of the spec or which input differs from the most similar finished task of this name."""
    mine = description(task)
    best: list[str] | None = None
    for manifest in store.manifests(task.name):
        changes = _changes(manifest, mine, type(task.spec))
        if best is None or len(changes) < len(best):
            best = changes
    if best is None:
        return "never made"
    if not best:
        return "a finished one has the same spec, and was made when identities were computed in another way"
    return f"differs from a finished one in {', '.join(best[:3])}" + (
        f" and {len(best) - 3} more" if len(best) > 3 else ""
    )


def _changes(before: dict[str, Any], now: dict[str, Any], kind: type[BaseModel]) -> list[str]:
    """The differences of two descriptions of tasks, in words."""
    one, other = _fields(before, kind), _fields(now, kind)
    changed = []
    for key in sorted(one.keys() | other.keys()):
        nested = any(within.startswith(f"{key}.") for within in one.keys() | other.keys())
        inside = any(key.startswith(f"{around}.") for around in one.keys() | other.keys())
        if not inside and one.get(key, MISSING) != other.get(key, MISSING):
            plain = nested or key.startswith("input ")
            field = kind.model_fields.get(key)
            name = field.title if field is not None and field.title else key
            changed.append(_change(name, one.get(key, "default"), other.get(key, "default"), plain))
    return changed


def _fields(described: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The description's fields by name. A field that was added later has its default."""
    try:
        read = kind.model_validate(described["spec"])
        spec = canonical(read) | (canonical(read.entering()) if isinstance(read, KnowsMore) else {})
    except ValueError:  # made by other code, which had other fields
        spec = described["spec"]
    return {
        "version": described["version"],
        **flatten(spec),
        **{f"input {name}": identity for name, identity in described["inputs"].items()},
    }


def _change(key: str, before: Any, now: Any, plain: bool) -> str:
    hashed = any(str(value).startswith("sha256 ") for value in (before, now))
    if plain or hashed or isinstance(before, list) or isinstance(now, list):
        return key
    return f"{key} ({before} -> {now})"


def _print_cost(recipe: Recipe, training: list[Task], waiting: set[str], here: bool) -> None:
    total = sum(task.weight for task in training)
    left = sum(task.weight for task in training if task.identity in waiting)
    click.echo(f"\n{plural(len(training), 'training')}, {total:.4g} FLOPs; to do {left:.4g} FLOPs")
    for line in _model_lines(recipe, training):
        click.echo(f"  {line}")
    if left and here:
        import torch

        from reducible.tasks.train.peak import peak_flops

        device = torch.device("cuda" if torch.cuda.is_available() and recipe.compute.gpus_per_worker else "cpu")
        peak = peak_flops(device, recipe.train.precision)
        if peak is not None:
            seconds = left / (SHARE_OF_PEAK * peak * _at_once(recipe))
            click.echo(f"  about {duration(seconds)} on this machine, at {SHARE_OF_PEAK:.0%} of its matrix speed")


def _model_lines(recipe: Recipe, training: list[Task]) -> Iterator[str]:
    """One line for each size: parameters, and the bytes of weights, gradients and the optimizer in fp32."""
    from reducible.models.cost.ledger import state_bytes
    from reducible.models.families.registry import family
    from reducible.models.layers.activation_checkpointing import saves_nothing

    seen = set()
    several = len({task.tags.get("family") for task in training}) > 1
    for task in training:
        spec: Any = task.spec
        kind = family(spec.family)
        config = kind.config(**spec.model)
        if (kind.name, repr(config)) in seen:
            continue
        seen.add((kind.name, repr(config)))
        cost = cost_at(spec, spec.sequence)
        per_unit = task.weight / ((spec.stop_step - spec.start_step) * spec.batch)  # with the data's own lengths
        whose = f"{task.tags['family']} " if several else ""
        optimizer = optimizer_kind(spec.optimizer.kind)
        state = state_bytes(cost.parameters, optimizer=optimizer.state_bytes(spec.optimizer))
        adapter = spec.method is not None and spec.method.kind != "full"  # then the table of memory shows it
        held = "" if adapter else f", {byte_count(state.total)} for weights, gradients and {optimizer.title}"
        yield (
            f"{whose}width {spec.model.get('width', '-'):>5}: N {cost.parameters:>13,} "
            f"({cost.parameters_without_embeddings:,} without embeddings), "
            f"{per_unit:.4g} FLOPs a {recipe.data.unit}{held}"
        )
        if reason := saves_nothing(kind, config, recipe.train.checkpointing):
            yield f"  train.checkpointing: {recipe.train.checkpointing} saves nothing: {reason}"


def _at_once(recipe: Recipe) -> float:
    import os

    if recipe.sweep is None:
        return recipe.compute.workers * recipe.compute.cpus_per_worker
    return float(os.cpu_count() or 1)
