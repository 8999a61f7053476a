"""Settings with which a step would fit into a memory, ranked by the time that they cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from reducible.models.families.registry import family
from reducible.models.layers.activation_checkpointing import MODES, saves_nothing
from reducible.models.memory.step_plan import Method, Setting, StepPlan, largest_micro_batch, planned
from reducible.models.step_settings import Adaptation, Checkpointing, Strategy

MOST_RANKS = 1024


@dataclass(frozen=True)
class Remedy:
    """A setting that fits."""

    plan: StepPlan
    time: float
    """The FLOPs of a step as a multiple of those without recomputation, on the same number of devices. Waiting for
    other ranks is not included."""
    changes: tuple[str, ...]


def remedies(
    setting: Setting, memory: float, rows: int, watch: Callable[[list[Setting]], Iterable[Setting]] = iter
) -> list[Remedy]:
    """Settings whose peak is at most `memory` bytes a rank, fastest first; among equals, those that change less first.

    rows: the examples of a rank in a step. A smaller micro-batch spreads them over more passes. It tries every mode of
    checkpointing, DDP and FSDP2, and adapters instead of all weights. If nothing fits, it tries more devices. `watch`
    iterates over a list of settings, such as a progress bar does, because each takes seconds.
    """
    first = planned(replace(setting, checkpointing="none", micro_batch=1)).flops
    smaller: dict[Adaptation, list[Adaptation]] = {"full": ["lora", "qlora"], "lora": ["qlora"], "qlora": []}
    others = [replace(setting.method, kind=kind) for kind in smaller[setting.method.kind]]
    methods = [setting.method, *(method for method in others if _takes(setting, method))]
    strategies: Sequence[Strategy] = ("ddp", "fsdp") if setting.world > 1 else ("none",)
    modes = [mode for mode in MODES if saves_nothing(family(setting.family), setting.config, mode) is None]
    candidates = [
        replace(setting, method=method, checkpointing=mode, strategy=strategy)
        for method in methods
        for mode in modes
        for strategy in strategies
    ]
    found = [remedy for candidate in watch(candidates) if (remedy := _remedy(setting, candidate, memory, rows, first))]
    if not any(remedy.plan.setting.method == setting.method for remedy in found):
        found += _with_more_ranks(setting, memory, rows, first, modes)
    ranked = sorted(found, key=lambda remedy: (remedy.time, len(remedy.changes), -remedy.plan.setting.micro_batch))
    return _worth_telling(ranked)


def _takes(setting: Setting, method: Method) -> bool:
    """Whether the model has something to adapt and, for qlora, matrices that are large enough to be quantised."""
    try:
        planned(replace(setting, method=method, strategy="none", world=1, checkpointing="none", micro_batch=1))
    except ValueError:
        return False
    return True


def _remedy(base: Setting, setting: Setting, memory: float, rows: int, first: float) -> Remedy | None:
    most = largest_micro_batch(setting, memory, min(rows, base.micro_batch))
    if most == 0:
        return None
    passes = -(-rows // most)
    accumulating = replace(setting, micro_batches=passes)
    most = largest_micro_batch(accumulating, memory, most)  # gradients of earlier passes are there
    if most == 0:
        return None
    plan = planned(replace(accumulating, micro_batch=most, micro_batches=-(-rows // most)))
    return Remedy(plan, plan.flops / most / first if first else 1.0, _changes(base, plan.setting))


def _with_more_ranks(
    setting: Setting, memory: float, rows: int, first: float, modes: Sequence[Checkpointing]
) -> list[Remedy]:
    """Settings for the fewest devices, by doubling, on which FSDP2 fits. Each device has fewer examples of the step."""
    world = max(2, 2 * setting.world)
    while world <= MOST_RANKS:
        fewer = max(1, rows * setting.world // world)
        candidates = [replace(setting, checkpointing=mode, strategy="fsdp", world=world) for mode in modes]
        found = [remedy for candidate in candidates if (remedy := _remedy(setting, candidate, memory, fewer, first))]
        if found:
            return found
        world *= 2
    return []


def _changes(base: Setting, setting: Setting) -> tuple[str, ...]:
    changes = []
    if setting.method != base.method:
        changes.append(f"method {setting.method.kind}")
    if setting.world != base.world:
        changes.append(f"{setting.world} devices")
    if setting.strategy != base.strategy:
        changes.append(f"strategy {setting.strategy}")
    if setting.checkpointing != base.checkpointing:
        changes.append(f"checkpointing {setting.checkpointing}")
    if setting.micro_batch != base.micro_batch:
        changes.append(f"micro_batch {setting.micro_batch}, {setting.micro_batches} a step")
    return tuple(changes)


def _worth_telling(ranked: list[Remedy]) -> list[Remedy]:
    """The remedies, except those that change everything that a faster one changes, and more."""
    kept: list[Remedy] = []
    for remedy in ranked:
        names = {_kind(change) for change in remedy.changes}
        if not any({_kind(change) for change in other.changes} <= names for other in kept):
            kept.append(remedy)
    return kept


def _kind(change: str) -> str:
    """The kind of a change, without the numbers of a micro-batch."""
    return "micro_batch" if change.startswith("micro_batch") else change
