"""Memory in `reducible plan`: bytes by kind and rank, FLOPs and time, communication, and settings that would fit."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from reducible.models.cost.ledger import state_bytes
from reducible.models.families.outside import blaming
from reducible.models.families.registry import family
from reducible.models.families.trial import require_count
from reducible.models.memory.gpus import Gpu, gpu
from reducible.models.memory.step_plan import Method, Setting, StepPlan, largest_micro_batch, planned
from reducible.models.step_settings import Strategy, strategy_on
from reducible.pipelines.recipe.finetune_section import Finetune
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.training import SHARE_OF_PEAK, cost_at, idle_workers
from reducible.tasks.errors import UserError
from reducible.tasks.train.optimizers.registry import optimizer_kind
from reducible.tasks.words import byte_count, duration
from reducible.tasks.workflow.task import Task

if TYPE_CHECKING:
    from reducible.models.memory.remedies import Remedy

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
MOST_UNITS = 1 << 22
"""The most target units of a micro-batch that can be rehearsed."""
ADVICE = 8
"""The most remedies that are printed."""


@dataclass(frozen=True)
class Asked:
    """The options of `plan` about other machines and memory. All None: nothing was asked."""

    gpus: int | None = None
    gpu: str | None = None
    sequence: int | None = None
    memory: str | None = None
    mfu: float | None = None
    report: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for wrong options, before anything is printed."""
        _ = self.device, self.bytes

    @property
    def anything(self) -> bool:
        return self.report or any(v is not None for v in (self.gpus, self.gpu, self.sequence, self.memory, self.mfu))

    @property
    def device(self) -> Gpu | None:
        try:
            return None if self.gpu is None and self.gpus is None else gpu(self.gpu or "h100")
        except ValueError as error:
            raise UserError(f"--{error}") from None

    @property
    def bytes(self) -> float | None:
        """The memory that one rank may use: --memory, else the device's."""
        if self.memory is None:
            return None if self.device is None else self.device.memory
        match = re.fullmatch(rf"\s*(\d+\.?\d*|\.\d+)\s*({'|'.join(UNITS)})\s*", self.memory)
        if match is None or float(match[1]) == 0:
            raise UserError(f"--memory: {self.memory!r} must be a size such as 80GB or 24GiB")
        return float(match[1]) * UNITS[match[2]]


def print_memory(recipe: Recipe, training: Sequence[Task], asked: Asked) -> None:
    """Prints the memory of the largest training, by the ledger's formulas."""
    spec: Any
    largest = max(training, key=_about_bytes)
    spec = largest.spec
    setting, examples = setting_of(recipe, spec, asked)
    plan = plan_of(setting, spec)
    click.echo("\nmemory of a training step" + (f" of {largest.title}" if len(training) > 1 else ""))
    for line in table(plan, optimizer_kind(spec.optimizer.kind).state):
        click.echo(f"  {line}")
    if note := idle_workers(examples, setting.micro_batch, setting.world):
        click.echo(f"  {note}")
    if not asked.anything:
        return
    for section in (_work, _fits, _inference, _attention):
        for line in section(recipe, spec, plan, examples, asked):
            click.echo(f"  {line}" if line else "")


def plan_of(setting: Setting, spec: Any) -> StepPlan:
    """The step's plan. A family from outside that fails in it, or whose cost is another model's, is one line."""
    kind = family(setting.family)
    if kind.code is None:
        return planned(setting)
    try:
        plan = planned(setting)
        if getattr(spec, "method", None) is None:
            with blaming(kind, "cost"):
                require_count(cost_at(spec, setting.sequence).parameters, plan.parameters)
    except ValueError as error:
        raise UserError(str(error)) from error
    return plan


def setting_of(recipe: Recipe, spec: Any, asked: Asked) -> tuple[Setting, int]:
    """The recipe's step on the devices that were asked for, and the examples of a step over all ranks.

    Micro-batches are given to the ranks undivided, as in training. If other devices or lengths than the recipe's were
    asked for, the micro-batch may become smaller, so that every rank has one.
    """
    kind, device = family(spec.family), asked.device
    world, sequence = asked.gpus or recipe.compute.workers, asked.sequence or spec.sequence
    if device is not None and spec.precision not in device.peaks:
        raise UserError(f"train.precision: {asked.gpu} has no {spec.precision}; it has {', '.join(device.peaks)}")
    examples = max(1, spec.batch // sequence)
    micro_batch = min(examples, max(1, spec.micro_batch * spec.sequence // sequence))
    if asked.gpus is not None or asked.sequence is not None:
        micro_batch = min(micro_batch, -(-examples // world))
    if micro_batch * sequence > MOST_UNITS:
        if sequence > MOST_UNITS:
            field = "data.sequence" if asked.sequence is None else "--sequence"
            raise UserError(f"{field}: {sequence} target units are more than the {MOST_UNITS} that are rehearsed")
        raise UserError(
            f"train.micro_batch: {micro_batch} x {sequence} target units are more than the {MOST_UNITS} that are "
            "rehearsed; plan with a smaller one, or shorter sequences"
        )
    method = method_of(spec, recipe.finetune)
    setting = Setting(
        *(kind.name, kind.config(**spec.model), sequence, micro_batch, method),
        checkpointing=recipe.train.checkpointing,
        precision=spec.precision,
        strategy=strategy_on(world, recipe.compute.strategy),
        world=world,
        micro_batches=-(-examples // (micro_batch * world)),
        device="cpu" if device is None else "cuda",
        optimizer_bytes=optimizer_kind(spec.optimizer.kind).state_bytes(spec.optimizer),
    )
    return setting, examples


def method_of(spec: Any, section: Finetune | None) -> Method:
    """The method of the training's spec, with the base's quantisation, which only the recipe has."""
    found = getattr(spec, "method", None)
    if found is None or found.kind == "full":
        return Method()
    from reducible.models.finetune.lora import Adapter

    adapter = Adapter(found.rank, found.alpha, found.dropout, found.targets)
    if found.kind == "lora" or section is None:
        return Method(found.kind, adapter)
    from reducible.models.quantise.quantised_base import Quantisation

    return Method(found.kind, adapter, Quantisation(section.quantisation, section.double))


def table(plan: StepPlan, state: str) -> Iterator[str]:
    """The lines about memory. `state`: what the optimizer holds, in words."""
    setting = plan.setting
    passes = f", {setting.micro_batches} a step" if setting.micro_batches > 1 else ""
    ranks = f", {setting.strategy} on {setting.world} ranks" if setting.world > 1 else ""
    yield (
        f"micro-batch {setting.micro_batch} x {setting.sequence}{passes}, {setting.precision}, "
        f"checkpointing {setting.checkpointing}{ranks}"
    )
    several = setting.world > 1
    yield f"{'':17} {'bits per parameter':>18} {'bytes':>10}" + (f" {'on each rank':>13}" if several else "")
    sharded = 1 / plan.shards
    for name, whole, share in (
        ("weights", plan.weights, sharded),
        ("gradients", plan.gradients, sharded),
        *([(state, plan.moments, sharded)] if plan.moments else []),
        ("activations", plan.activations, 1.0),
    ):
        each = f" {byte_count(whole * share):>13}" if several else ""
        yield f"{name:17} {plan.bits(whole):>18.3g} {byte_count(whole):>10}{each}"
    yield f"{'peak':17} {'':>18} " + (
        f"{'':>10} {byte_count(plan.peak):>13}" if several else f"{byte_count(plan.peak):>10}"
    )


def _work(recipe: Recipe, spec: Any, plan: StepPlan, examples: int, asked: Asked) -> Iterator[str]:
    setting, device = plan.setting, asked.device
    cost = cost_at(spec, setting.sequence)
    step = cost.training_flops_per_unit * examples * setting.sequence
    steps = (spec.stop_step - spec.start_step) * spec.batch / (examples * setting.sequence)
    really = plan.flops * examples / setting.micro_batch
    if setting.method.kind != "full":
        step = really
        yield f"FLOPs             {step:.4g} a step, {step * steps:.4g} in all (counted)"
    else:
        yield f"FLOPs             {step:.4g} a step, {step * steps:.4g} in all"
    # Only products of matrices are counted, and a model may have none.
    if really and step and abs(really / step - 1) > 0.005:
        twice = ["attention's scores"] if setting.config.attention_shape else []
        twice += ["what is checkpointed"] if setting.checkpointing != "none" else []
        why = f"{' and '.join(twice)}, computed twice" if really > step and twice else "backward is not twice forward"
        yield f"computed          {really / step:.3g} times that: {why}"
    peak, mfu = _peak(recipe, setting, device), asked.mfu or SHARE_OF_PEAK
    if peak is not None:
        # All ranks wait for the one with the most to do.
        most = min(examples, setting.micro_batches * setting.micro_batch)
        seconds = step * most / examples / (mfu * peak)
        again = planned(replace(setting, checkpointing="none"))
        more = plan.flops / again.flops if again.flops else 1.0
        longer = f", of which checkpointing is {seconds * (more - 1):.3g} s" if more > 1.001 else ""
        where = f"{setting.world} x {asked.gpu or 'h100'}" if device else "this machine"
        yield (
            f"time              {seconds * more:.3g} s a step, {duration(seconds * more * steps)} in all on {where} "
            f"at {mfu:.0%} of {peak:.3g} FLOP/s{longer}"
        )
    if setting.world > 1:
        titles: dict[Strategy, str] = {"ddp": "DDP", "fsdp": "FSDP2"}
        for strategy, title in titles.items():
            other = planned(replace(setting, strategy=strategy))
            yield f"{title:17} peak {byte_count(other.peak)} and {byte_count(other.sent)} sent a step, each rank"


def _fits(recipe: Recipe, spec: Any, plan: StepPlan, examples: int, asked: Asked) -> Iterator[str]:
    memory = asked.bytes
    if memory is None:
        return
    setting = plan.setting
    most = largest_micro_batch(setting, memory, max(1, MOST_UNITS // setting.sequence))
    if most:
        yield f"largest           micro-batch {most} fits into {byte_count(memory)}"
    else:
        one = planned(replace(setting, micro_batch=1)).peak
        yield f"too large         one example takes {byte_count(one)}; the limit is {byte_count(memory)}"
    if plan.peak <= memory:
        return
    from reducible.models.memory.remedies import remedies

    yield f"{byte_count(plan.peak)} do not fit into {byte_count(memory)}. These settings would, fastest first:"
    rows = -(-examples // setting.world)
    found = remedies(setting, memory, rows, partial(tqdm, desc="  rehearsing", leave=False, disable=None))
    if not found:
        yield "  none was found on up to 1024 devices"
        return
    yield f"  {'time x':>6} {'peak':>9} {'sent':>9}  change"
    adapting = [remedy for remedy in found if remedy.plan.setting.method != setting.method and recipe.finetune is None]
    yield from map(_remedy, [remedy for remedy in found if remedy not in adapting][:ADVICE])
    if adapting:
        yield "  with a base that is trained already (reducible finetune):"
        yield from map(_remedy, adapting[:ADVICE])


def _remedy(remedy: "Remedy") -> str:
    changes = "; ".join(remedy.changes)
    return f"  {remedy.time:>6.2f} {byte_count(remedy.plan.peak):>9} {byte_count(remedy.plan.sent):>9}  {changes}"


def _inference(recipe: Recipe, spec: Any, plan: StepPlan, examples: int, asked: Asked) -> Iterator[str]:
    from reducible.models.cost.inference import weight_bytes

    parameters = cost_at(spec, plan.setting.sequence).parameters
    weights = ", ".join(f"{name} {byte_count(count)}" for name, count in weight_bytes(parameters).items())
    yield ""
    yield f"inference         weights: {weights}"
    remembers = family(spec.family).remembers
    kept = remembers(plan.setting.config, 2)
    each = f"{byte_count(kept.per_token)} a {recipe.data.unit}, " if kept.per_token else ""
    bits = " in 16 bits" if kept != remembers(plan.setting.config, 4) else ""
    yield f"                  {kept.what}{bits}: {each}{byte_count(kept.bytes(plan.setting.sequence))} a sequence"


def _attention(recipe: Recipe, spec: Any, plan: StepPlan, examples: int, asked: Asked) -> Iterator[str]:
    from reducible.models.cost.attention import AttentionCost

    setting, config = plan.setting, plan.setting.config
    shape = config.attention_shape
    if shape is None:
        return
    T, d, (h, shared) = setting.sequence, config.width, shape
    cost = AttentionCost(T, d, h, shared)
    one = AttentionCost(T, d, 1, 1)
    yield ""
    yield f"attention         a layer and sequence, T = {T}, d = {d}, h = {h} heads"
    formula = "8 T d^2" if shared == h else f"4 T d^2 (1 + {shared}/{h})"
    projections, products = f"{formula} = {cost.projections:.4g}", f"4 T^2 d = {cost.products:.4g}"
    written_down, alone = (byte_count(some.score_bytes(setting.compute)) for some in (cost, one))
    yield f"                  time    projections {projections}, products {products} FLOPs"
    yield (
        f"                  memory  scores h T^2: {written_down} if written down, with one head {alone} at the same "
        f"FLOPs; flash holds {byte_count(cost.fused_bytes(setting.compute))}"
    )


def _about_bytes(task: Task) -> float:
    spec: Any = task.spec
    cost = cost_at(spec, spec.sequence)
    held = optimizer_kind(spec.optimizer.kind).state_bytes(spec.optimizer)
    return state_bytes(cost.parameters, optimizer=held).total + float(
        cost.activation_bytes(spec.micro_batch * spec.sequence)
    )


def _peak(recipe: Recipe, setting: Setting, device: Gpu | None) -> float | None:
    if device is not None:
        return device.peaks[setting.precision]
    import torch

    from reducible.tasks.train.peak import peak_flops

    return peak_flops(torch.device("cpu"), setting.precision)
