"""What a training step needs, on one process or on each of many: bytes by kind, FLOPs, bytes sent. Runs nothing.

Everything comes from a rehearsal of the step (models/memory/rehearsed_step.py) and the arithmetic of sharding
(models/memory/ranks.py). Deep models are carried on from shallow ones, and long recurrences that loop over time in
Python or C++ from short ones.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from reducible.models.config import ModelConfig
from reducible.models.contract import Model
from reducible.models.families.outside import blaming
from reducible.models.families.registry import family
from reducible.models.layers.activation_checkpointing import set_checkpointing
from reducible.models.memory.ranks import ddp_sent_bytes, fsdp_peak_bytes, fsdp_sent_bytes
from reducible.models.memory.rehearsed_step import Path, Rehearsal, Stage, Units, rehearse
from reducible.models.quantise.number_formats import DTYPES
from reducible.models.quantise.quantised_base import Blocks, Quantisation, make_tables, quantise_model
from reducible.models.step_settings import Adaptation, Checkpointing, Precision, Strategy

Numbers = TypeVar("Numbers", Rehearsal, Stage)
MANY_LAYERS = 12
"""From this depth on, two shallower models of the same shape are rehearsed: each further layer takes what one takes."""
SHALLOW = (2, 3)
SHORT = (64, 100, 144)
"""Lengths rehearsed instead of a loop over time that would take too long; squares, for chunks of the root of time."""
POWERS, POWERS_LOOKING_BACK = (0.0, 1.0), (0.0, 1.0, 2.0)
"""Powers of the length in what a recurrence takes, and in what one takes that looks back at a source of its length."""
POWERS_OF_CHUNKS, POWERS_OF_CHUNKS_LOOKING_BACK = (0.0, 0.5, 1.0), (0.0, 1.0, 1.5)
"""The same for the bytes of a recurrence that is cut into chunks of the root of time."""
NARROWING = 3
"""Chords on the way to the largest micro-batch; the first is exact where the peak is one straight line."""
LONG_LOOP = 20_000
"""Operators that are rehearsed in a few seconds."""


@dataclass(frozen=True)
class Method:
    """What is trained: all of the model (full), or an adapter beside a base that is kept as it was or in few bits."""

    kind: Adaptation = "full"
    adapter: Any = None
    """reducible.models.finetune.lora.Adapter; None: its defaults."""
    quantisation: Any = None
    """reducible.models.quantise.quantised_base.Quantisation, of qlora; None: its defaults."""


@dataclass(frozen=True)
class Setting:
    """One step as it might be run."""

    family: str
    config: ModelConfig
    sequence: int
    micro_batch: int
    method: Method = Method()
    checkpointing: Checkpointing = "none"
    precision: Precision = "fp32"
    strategy: Strategy = "none"
    world: int = 1
    micro_batches: int = 1
    """Micro-batches that each rank runs in a step."""
    device: Literal["cpu", "cuda"] = "cpu"
    optimizer_bytes: int = 8
    """What the optimizer holds for each trained parameter; 8 are the two moments of AdamW."""

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return 4 if self.precision == "fp32" else 2

    @property
    def gathers_half(self) -> bool:
        """Whether FSDP2 gathers weights in the precision, without autocast; with weights in few bits not."""
        return self.strategy == "fsdp" and self.precision != "fp32" and self.method.kind != "qlora"


@dataclass(frozen=True)
class StepPlan:
    setting: Setting
    parameters: int
    trained: int
    weights: float
    """Bytes of one whole copy as stored, like the next two. moments: what the optimizer holds."""
    gradients: float
    moments: float
    activations: float
    """Bytes on each rank, of one micro-batch: what forward leaves and what backward makes besides gradients."""
    peak: float
    """The most bytes on one rank at once."""
    flops: float
    """FLOPs of one micro-batch as computed: what is computed twice counts twice."""
    sent: float
    """Bytes that each rank sends in a step."""

    def bits(self, bytes_: float) -> float:
        """Bits per parameter."""
        return 8 * bytes_ / self.parameters

    @property
    def shards(self) -> int:
        return self.setting.world if self.setting.strategy == "fsdp" else 1


def step_plan(
    family: str,
    config: Any,
    method: Method = Method(),  # noqa: B008  frozen
    checkpointing: Checkpointing = "none",
    micro_batch: int = 1,
    sequence: int = 256,
    world: int = 1,
    strategy: Strategy = "none",
    precision: Precision = "fp32",
    micro_batches: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> StepPlan:
    """What the step of these settings takes; see Setting.

    Raises:
        ValueError: unknown family, precision, checkpointing.
        UncountedOperator: the family multiplies matrices in a way that nothing is known of.
    """
    return planned(
        Setting(
            *(family, config, sequence, micro_batch, method, checkpointing, precision, strategy, world),
            micro_batches=micro_batches,
            device=device,
        )
    )


def planned(setting: Setting) -> StepPlan:
    found = rehearsed(_of_one_process(setting))
    trained, accumulates = found.trained, setting.micro_batches > 1
    if setting.strategy == "fsdp" and setting.world > 1:
        gathered = setting.compute if setting.gathers_half else 4
        peak = fsdp_peak_bytes(found, setting.world, gathered, accumulates, setting.optimizer_bytes)
        sent = fsdp_sent_bytes(found.units, setting.world, setting.micro_batches)
        weights = 4 / gathered * found.units.gathered
    else:
        peak = found.accumulating_peak if accumulates else found.peak
        if setting.world > 1:
            # DDP's buckets are there from the start, and are made anew after the first backward.
            peak = max(found.accumulating_peak, found.weights + found.moments + 2 * found.gradients)
        sent = ddp_sent_bytes(trained, setting.world)
        weights = found.weights
    return StepPlan(
        setting=setting,
        parameters=found.parameters,
        trained=trained,
        weights=weights,
        gradients=4.0 * trained,
        moments=float(setting.optimizer_bytes) * trained,
        activations=found.activations,
        peak=peak,
        flops=found.flops,
        sent=sent if setting.world > 1 else 0.0,
    )


def _of_one_process(setting: Setting) -> Setting:
    """What the rehearsal depends on: FSDP2 computes with weights of the type, others under autocast."""
    strategy: Strategy = "fsdp" if setting.gathers_half and setting.world > 1 else "none"
    return replace(setting, strategy=strategy, world=1, micro_batches=1)


@lru_cache(maxsize=1024)
def rehearsed(setting: Setting) -> Rehearsal:
    """The rehearsal of a setting on one process, put together from smaller ones if the setting is large."""
    depth = setting.config.blocks
    if depth >= MANY_LAYERS and not _names_layers(setting.method):
        one, other = (rehearsed(replace(setting, config=setting.config.with_blocks(layers))) for layers in SHALLOW)
        deep = _deeper(one, other, depth)
        if deep is not None:
            return deep
    if setting.sequence > max(SHORT) and _operators(setting) > LONG_LOOP:
        piece = setting.config.piece
        if piece is not None and 2 * piece < setting.sequence:
            short = rehearsed(replace(setting, sequence=2 * piece))
            return replace(short, flops=short.flops * setting.sequence / (2 * piece))
        shorts = [rehearsed(replace(setting, sequence=length)) for length in SHORT]
        if len({tuple(stage.path for stage in short.stages) for short in shorts}) == 1:
            return _longer(shorts, setting)
    return _rehearse(setting)


def _rehearse(setting: Setting) -> Rehearsal:
    if setting.precision not in DTYPES:
        raise ValueError(f"precision {setting.precision!r} must be one of {', '.join(DTYPES)}")
    if setting.method.kind != "full":
        make_tables()  # for LoRA too: peft imports bitsandbytes, with its complaints
    reads = family(setting.family).batch
    batch = reads.full_batch(setting.config, setting.micro_batch, setting.sequence)
    numbers = DTYPES[setting.precision]

    def build() -> Model:
        model = prepared(setting)
        if setting.gathers_half:
            computes_in(model, numbers)
        return model

    half = setting.precision != "fp32" and not setting.gathers_half
    with blaming(family(setting.family), "a rehearsed step"):
        return rehearse(
            *(build, batch),
            autocast=numbers if half else None,
            device=setting.device,
            optimizer_bytes=setting.optimizer_bytes,
        )


def prepared(setting: Setting) -> Model:
    """A model as its training begins; its numbers do not matter."""
    model = family(setting.family).build(setting.config)
    if setting.method.kind == "qlora":
        quantise_model(model, setting.method.quantisation or Quantisation(), Blocks.like)
    if setting.method.kind != "full":
        from reducible.models.finetune.lora import Adapter, add_adapter

        add_adapter(model, setting.method.adapter or Adapter())
    set_checkpointing(model.train(), setting.checkpointing)
    return model


def computes_in(model: nn.Module, numbers: torch.dtype) -> None:
    """As model.to(numbers), which swaps tensors, and fake ones cannot be swapped."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                if parameter not in made:
                    made[parameter] = nn.Parameter(parameter.detach().to(numbers), parameter.requires_grad)
                module._parameters[name] = made[parameter]
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


@lru_cache(maxsize=64)
def _operators_a_step(family: str, config: Any) -> tuple[int, float]:
    """Operators of 16 steps, and of each further step: none, except in a loop over time."""
    few, more = (_rehearse(Setting(family, config, length, 1)).operators for length in (16, 24))
    return few, (more - few) / 8


def _operators(setting: Setting) -> float:
    first, each = _operators_a_step(setting.family, setting.config)
    return first + each * (setting.sequence - 16)


def _names_layers(method: Method) -> bool:
    """Whether an adapter may sit in some layers and not in others. Letters and * alone match all numbers alike."""
    return any(set(pattern) & set("0123456789?[") for pattern in getattr(method.adapter, "targets", ()))


def _longer(shorts: Sequence[Rehearsal], setting: Setting) -> Rehearsal:
    """The rehearsal at that setting's length, from those at SHORT, which have the same stages."""
    looks_back, in_chunks = setting.config.looks_back, setting.checkpointing == "sqrt-time"
    powers = POWERS_LOOKING_BACK if looks_back else POWERS
    of_flops = of_bytes = _weights(SHORT, powers, setting.sequence)
    if in_chunks:
        powers = POWERS_OF_CHUNKS_LOOKING_BACK if looks_back else POWERS_OF_CHUNKS
        of_bytes = _weights(SHORT, powers, setting.sequence)
    return replace(
        _combined(shorts, of_bytes),
        stages=tuple(_combined(alike, of_bytes) for alike in zip(*(short.stages for short in shorts), strict=True)),
        flops=_combined(shorts, of_flops).flops,
    )


def _weights(known: Sequence[int], powers: Sequence[float], wanted: int) -> Sequence[float]:
    """Weights of what is known at several sizes: their sum is the value at the size that is wanted, by the combination
    of powers of the size that goes through the last known values, as many as there are powers."""
    last = known[-len(powers) :]
    at_last = np.array([[size**power for power in powers] for size in last])
    weights = np.linalg.solve(at_last.T, [wanted**power for power in powers])
    return [0.0] * (len(known) - len(last)) + weights.tolist()


def _combined(known: Sequence[Numbers], weights: Sequence[float]) -> Numbers:
    """The last rehearsal, with each number in it replaced by the weighted sum."""
    numbers: dict[str, Any] = {}
    for field in fields(known[-1]):
        values = [getattr(one, field.name) for one in known]
        if isinstance(values[-1], int | float):
            numbers[field.name] = round(float(np.dot(weights, values)))
    return replace(known[-1], **numbers)


def _deeper(one: Rehearsal, other: Rehearsal, depth: int) -> Rehearsal | None:
    """The rehearsal of a model of that depth, from those of SHALLOW; None if their stages do not match."""
    more = depth - SHALLOW[1]
    stages = _deeper_stages(one.stages, other.stages, more)
    if stages is None:
        return None
    found = _combined([one, other], [-more, 1 + more])
    return replace(found, stages=stages, units=_deeper_units(one.units, other.units, more))


def _deeper_stages(first: Sequence[Stage], second: Sequence[Stage], more: int) -> tuple[Stage, ...] | None:
    """The rehearsal of a model with so many more layers than the second; None if the two do not match.

    A stage outside of layers, in the first layer or in the last one grows as it does from the first model to the
    second. Those of the layers between go evenly from one end to the other, so that the ends are enough: the second
    layer, which grows as the first one does, and the last but one.
    """
    one, other = ({stage.path: stage for stage in stages} for stages in (first, second))
    growth = {path: [(path, path)] for path in other}
    """For each stage of the second model, the stages that it grows as: (in the first, in the second)."""
    for last in other.keys() - one.keys():
        bottom, middle = next((pair for pair in _below(last) if one.keys() >= set(pair)), (None, None))
        if bottom is None or middle is None:
            return None
        growth[last] = [(middle, last)]
        growth[middle] = [(bottom, bottom), (middle, last)]
    if one.keys() != {before for pairs in growth.values() for before, _ in pairs}:
        return None
    return tuple(
        _combined([one[before], other[after], other[path]], [-more, more, 1])
        for path, pairs in growth.items()
        for before, after in pairs
    )


def _below(last: Path) -> Iterator[tuple[Path, Path]]:
    """The same place in the first and in the middle layer of three. Any of its numbers may be the one of the layer."""
    for at, step in enumerate(last):
        if step == 2:
            yield (*last[:at], 0, *last[at + 1 :]), (*last[:at], 1, *last[at + 1 :])


def _deeper_units(one: Units, other: Units, more: int) -> Units:
    """A layer adds blocks, or adds to each of as many, or outside."""
    first, second = (sorted(zip(units.blocks, units.blocks_trained, strict=True)) for units in (one, other))
    if len(first) == len(second):
        blocks = [(b + more * (b - a), c + more * (c - d)) for (a, d), (b, c) in zip(first, second, strict=True)]
    else:
        blocks = second + more * list((Counter(second) - Counter(first)).elements())
    return Units(
        blocks=tuple(gathered for gathered, _ in blocks),
        blocks_trained=tuple(trained for _, trained in blocks),
        root=other.root + more * (other.root - one.root),
        root_trained=other.root_trained + more * (other.root_trained - one.root_trained),
        table=other.table,
    )


def largest_micro_batch(setting: Setting, memory: float, most: int) -> int:
    """The number of rows, at most `most`, that fit into so many bytes; 0: not one. Each answer was rehearsed.

    The peak is the largest of several moments, each of which grows in proportion to the rows: a convex function.
    Between two rehearsals it lies below their chord, so that what fits by the chord fits.
    """

    def peak(rows: int) -> float:
        return planned(replace(setting, micro_batch=rows)).peak

    if peak(1) > memory:
        return 0
    if peak(most) <= memory:
        return most
    fits, too_many = 1, most
    for _ in range(NARROWING):
        low, high = peak(fits), peak(too_many)
        by_chord = fits + math.floor((too_many - fits) * (memory - low) / (high - low))
        if by_chord == fits:
            break
        fits = by_chord
    return fits
