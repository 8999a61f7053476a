"""Turns a recipe's shares and defaults into one training in exact steps, with its cost from the ledger."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

import click
from pydantic import TypeAdapter, ValidationError

from reducible.models.contract import Family
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.outside import EXAMPLE, blaming
from reducible.models.families.registry import DEFAULT, FAMILIES, family
from reducible.pipelines.recipe.fields import parse_number, plain_message, said_alike
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.train.train_spec import (
    VERSION,
    Execution,
    ScheduleKind,
    ScheduleSpec,
    StepSettings,
    TrainSpec,
    ValidationSpec,
    Workers,
)
from reducible.tasks.words import plural
from reducible.tasks.workflow.frozen import NUMBER, holds_boolean, is_number
from reducible.tasks.workflow.task import Resources, Task

LARGEST_MICRO_BATCH = 16_384  # target units per forward pass, unless the recipe says otherwise
SHARE_OF_PEAK = 0.4
"""The share of a device's matrix speed that small models reach on a CPU, and larger ones on a GPU."""


def cost_at(spec: TrainSpec, sequence: int) -> Cost:
    """The ledger's entry for a training whose examples, and their sources, all have that many units."""
    kind = family(spec.family)
    cost: Cost = kind.cost(kind.config(**spec.model), kind.batch.lengths(sequence))
    return cost


@dataclass(frozen=True)
class Model:
    """A family with one of its configurations and the cost of that."""

    family: Family
    config: Any
    cost: Cost
    lengths: Lengths

    @property
    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self.config, field.name) for field in fields(self.config)}


def family_of(recipe: Recipe, section: Mapping[str, Any] | None = None) -> Family:
    """The family that the recipe's model section (or another `section`) names.

    Raises:
        UserError: there is no such family, it reads another kind of data, or cannot mask documents.
    """
    section = recipe.model if section is None else section
    name = section.get("family", DEFAULT)
    if not isinstance(name, str) or not name:
        known = f"one of {', '.join(FAMILIES)}, or an address such as {EXAMPLE}"
        raise UserError(f"model.family: {name!r} is not allowed; it must be {known}")
    try:
        kind = family(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not recipe.data.gives(kind.reads):
        raise UserError(
            f"model.family: {kind.name} reads {kind.reads}, which data.kind {recipe.data.kind} does not give; "
            f"it needs data.kind: {kind_named(kind.reads).data}"
        )
    require_maskable(recipe, kind)
    return kind


def family_that_trained(spec: TrainSpec) -> Family:
    """The family of a training. Raises UserError if it is not here."""
    try:
        return family(spec.family)
    except ValueError as error:
        raise UserError(str(error)) from error


def say_if_code_differs(spec: TrainSpec) -> None:
    """Prints one line if the family's code is another than the one that trained."""
    now, then = family_that_trained(spec).code, spec.family_code
    if now == then:
        return
    versions = "" if "sha256" in f"{now}{then}" else f" ({then} then, {now} now)"
    click.echo(f"model.family: the code of {spec.family} is not the code that trained this model{versions}", err=True)


def require_maskable(recipe: Recipe, kind: Family) -> None:
    if recipe.data.masks_documents and not kind.masks_documents:
        raise UserError(f"data.mask_documents: a model of family {kind.name} has no attention to mask; set it to false")


def model_of(
    recipe: Recipe, facts: Mapping[str, Any], lengths: Lengths, section: Mapping[str, Any] | None = None
) -> Model:
    """The recipe's model section (or another `section`) as a configuration of its family.

    facts: what the data decide (pipelines/dataset/data_section.py).

    Raises:
        UserError: unknown family or key (with the nearest one), or a value that the family refuses.
    """
    kind = family_of(recipe, section)
    given = {key: value for key, value in (recipe.model if section is None else section).items() if key != "family"}
    hints = {field.name: get_type_hints(kind.config)[field.name] for field in fields(kind.config)}
    for key, value in given.items():
        if key not in hints or key in kind.batch.decided:
            known = [name for name in hints if name not in kind.batch.decided]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"a {kind.name} has {', '.join(known)}"
            raise UserError(f"model.{key}: unknown key; {hint}")
        if holds_boolean(value) and is_number(hints[key]):
            raise UserError(f"model.{key}: {value!r} is not allowed; it must be {NUMBER}")
        try:
            given[key] = TypeAdapter(hints[key]).validate_python(_as_number(value) if is_number(hints[key]) else value)
        except ValidationError as error:
            message = plain_message(error.errors()[0]["msg"])
            raise UserError(f"model.{key}: {value!r} is not allowed; it must be {message}") from None
    for field in fields(kind.config):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in given and field.name not in facts:
            raise UserError(f"model.{field.name}: missing; a {kind.name} has no default for it")
    try:
        with blaming(kind, "the configuration"):
            config = kind.config(**facts, **given)
        return Model(kind, config, cost_of(kind, config, lengths), lengths)
    except ValueError as error:
        raise UserError(str(error)) from None


def _as_number(value: Any) -> Any:
    """2k and 1e4, which YAML takes for text; what is no number stays as it is."""
    try:
        return parse_number(value)
    except ValueError:
        return value


def cost_of(kind: Family, config: Any, lengths: Lengths) -> Cost:
    """The ledger's entry. Raises ValueError if a family from outside has none."""
    with blaming(kind, "the cost"):
        cost = kind.cost(config, lengths)
    if not isinstance(cost, Cost):
        raise ValueError(f"model.family: {kind.name}: cost returns a {type(cost).__name__}, and must return a Cost")
    return cost


def scaled(model: Model, width: int) -> Model:
    """The same family at another width."""
    try:
        with blaming(model.family, "scaled"):
            config = model.config.scaled(width)
        return Model(model.family, config, cost_of(model.family, config, model.lengths), model.lengths)
    except ValueError as error:
        raise UserError(f"sweep.widths: {error}") from None


def batch_units(recipe: Recipe, model: Model, tokens: int, batch: int | None = None) -> int:
    """Target units per step. The default is a quarter of the square root of all tokens, as a power of two of sequences.

    The batch that training can use grows with the loss still to be removed, empirically near the root of the tokens
    (Bergsma et al. 2025, "Power Lines"). Small models on text did best with a quarter of it.
    """
    sequence = recipe.data.sequence
    batch = batch or recipe.train.batch
    if batch is None:
        sequences = max(1.0, 0.25 * math.sqrt(tokens) / sequence)
        return int(sequence * 2 ** round(math.log2(sequences)))
    if batch % sequence and model.family.batch.packed:  # ragged examples fill a step as far as they go
        right = max(1, round(batch / sequence)) * sequence
        raise UserError(
            f"train.batch: {batch} target units are not a whole number of sequences of {sequence} (data.sequence); "
            f"{right} would be"
        )
    if batch < sequence:
        raise UserError(
            f"train.batch: {batch} target units are less than one sequence of {sequence} (data.sequence); "
            f"{sequence} would do"
        )
    return batch


def steps_of(tokens: int, batch: int) -> int:
    return max(1, round(tokens / batch))


def train_spec(
    recipe: Recipe,
    model: Model,
    *,
    tokens: int,
    batch: int | None = None,
    seed: int | None = None,
    searched: bool = False,
    start_step: int = 0,
    warmup_steps: int | None = None,
    horizon: int | None = None,
    kind: ScheduleKind | None = None,
) -> TrainSpec:
    """One stretch of training up to `tokens` target units.

    searched: the learning rate comes from the input artifact `search`. A branch or segment of a trunk has a start_step,
    and the trunk's warmup_steps and horizon, which do not depend on where a branch ends.
    """
    train = recipe.train
    units = batch_units(recipe, model, tokens, batch)
    steps = steps_of(tokens, units)
    schedule = train.schedule
    kind = kind or schedule.kind
    warmup = round(schedule.warmup * steps) if warmup_steps is None else warmup_steps
    cooldown = min(round(schedule.cooldown * steps), steps - start_step) if kind == "wsd" else 0
    micro_batch = train.micro_batch or max(1, min(units, LARGEST_MICRO_BATCH) // recipe.data.sequence)
    settings = said_alike(train, StepSettings)
    if seed is not None:
        settings["seed"] = seed
    if searched:
        settings["optimizer"] = train.optimizer.model_copy(update={"learning_rate": None})
    return TrainSpec(
        family=model.family.name,
        family_code=model.family.code,
        model=model.settings,
        sequence=recipe.data.sequence,
        mask_documents=recipe.data.masks_documents,
        start_step=start_step,
        stop_step=steps,
        batch=units,
        micro_batch=micro_batch,
        horizon=horizon if model.family.has_schedule else None,
        schedule=ScheduleSpec(
            kind=kind, warmup_steps=warmup, cooldown_steps=cooldown, final_fraction=schedule.final_fraction
        ),
        validation=ValidationSpec(
            every=math.ceil(train.validation.every * steps),
            examples=max(1, train.validation.units // recipe.data.sequence),
        ),
        method=recipe.finetune.spec if recipe.finetune else None,
        **settings,
    )


def execution_of(recipe: Recipe, spec: TrainSpec) -> Execution:
    compute, steps = recipe.compute, spec.stop_step - spec.start_step
    return Execution(
        **said_alike(compute, Workers),
        checkpointing=recipe.train.checkpointing,
        checkpoint_every=compute.checkpoint_every or max(1, steps // 10),
        log_every=compute.log_every or max(1, steps // 200),
    )


def idle_workers(examples: int, micro_batch: int, workers: int) -> str:
    """A note if some workers have nothing to do, because micro-batches are not divided among workers.

    examples: their number in a step. Examples of different lengths may form more micro-batches.
    """
    count = -(-examples // micro_batch)
    passes = -(-count // workers)
    if count >= workers or workers == 1:
        return ""
    has = f"{workers - count} of {workers} workers have nothing to do: a step is"
    if examples < workers:
        return f"{has} {plural(examples, 'sequence')}; a larger train.batch has work for all"
    share = -(-examples // (workers * passes))
    dealt = f"{plural(count, 'micro-batch', 'micro-batches')} of {micro_batch} sequences"
    return f"{has} {dealt}; train.micro_batch={share} has work for all"


def training_flops(spec: TrainSpec, cost: Cost) -> float:
    """The FLOPs of this stretch only, from the ledger."""
    return (spec.stop_step - spec.start_step) * spec.batch * cost.training_flops_per_unit


def training_task(
    recipe: Recipe,
    model: Model,
    spec: TrainSpec,
    inputs: Mapping[str, Task],
    label: str,
    tags: Mapping[str, str],
    share: float = 1.0,
) -> Task:
    """The spec as a task with the recipe's workers, of which it holds a share. Its weight is its cost."""
    compute = recipe.compute
    return Task(
        name="train",
        version=VERSION,
        run="reducible.tasks.train.train_task:run",
        spec=spec,
        inputs=inputs,
        label=label,
        resources=Resources(
            cpus=compute.cpus_per_worker, gpus=compute.gpus_per_worker, workers=compute.workers, share=share
        ),
        # What it holds is recorded with it: a price of compute counts the devices.
        execution=execution_of(recipe, spec).model_copy(update={"gpus_per_worker": compute.gpus_per_worker * share}),
        weight=training_flops(spec, model.cost),
        retries=compute.retries,
        tags={"family": model.family.name, **tags},
    )
