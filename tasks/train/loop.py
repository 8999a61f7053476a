"""Training, from a spec and data to weights: the step, and what happens between steps.

Plain torch.distributed: it runs in one process, under torchrun (tasks/train/__main__.py) and in Ray Train's workers
(tasks/train/train_task.py) alike. On steps without a log row, a checkpoint or a validation the host does not wait for
the device, but where a family has to: seq2seq packs its sources by lengths that the host must know, and linear-gaussian
reads which values are missing.
"""

import hashlib
import logging
import math
import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reducible.models.families.registry import family
from reducible.models.layers.activation_checkpointing import saves_nothing, set_checkpointing
from reducible.models.loss import Loss, Unsayable, total_of
from reducible.models.quantise.number_formats import DTYPES
from reducible.models.weights.model_folder import save_weights
from reducible.tasks.errors import UserError
from reducible.tasks.train import checkpoints, finetuning
from reducible.tasks.train.allocator import keep_freed_memory
from reducible.tasks.train.checkpoints import Checkpoints
from reducible.tasks.train.device import memory, refuse_slow_precision
from reducible.tasks.train.examples import TrainingData, open_examples
from reducible.tasks.train.guards import Diverged, FiniteGuard, SpikeGuard
from reducible.tasks.train.interval import Interval
from reducible.tasks.train.loss_scale import LossScale
from reducible.tasks.train.optimizers.adamw import AdamW
from reducible.tasks.train.parallel import Parallel, World, full
from reducible.tasks.train.peak import peak_flops
from reducible.tasks.train.schedule import rate_at
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, read_rows

log = logging.getLogger(__name__)

VALIDATION = -1
"""Stands for the step where chance of a validation is seeded."""

STATE = "state"
"""Where the artifact of a training has its last checkpoint."""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. Losses in nats per target unit; units, flops and seconds since step 0 of the trunk."""

    status: str
    """finished or diverged."""
    step: int
    units: int
    flops: float
    parameters: int
    parameters_without_embeddings: int
    train_loss: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None
    learning_rate: float
    seconds: float
    units_per_second: float
    reason: str | None = None
    base_loss: float | None = None
    """Fine-tuning: the validation loss before the first step."""


@dataclass
class Progress:
    """All that a resumed training needs besides tensors. Order and chance have no state (contracts 2 and 3)."""

    step: int = 0
    units: int = 0
    seconds: float = 0.0
    stepping: float = 0.0
    """Seconds in steps alone, without validation, checkpoints and start-up."""
    first_loss: float | None = None
    """Loss of the untrained model."""
    validated: float | None = None
    """Validation loss at this very step, if it was measured there."""
    base_loss: float | None = None
    """Validation loss of the base that is fine-tuned, before the first step."""


class Micro(NamedTuple):
    """One micro-batch on this rank. A real one counts; another only takes part in the collectives."""

    number: int
    """Which of the step's global micro-batches."""
    batch: dict[str, Tensor]
    units: int
    real: bool


def train(
    spec: TrainSpec,
    execution: Execution,
    *,
    data: Path | TrainingData,
    start: Path | None,
    work: Path,
    record: Record,
    learning_rate: float | None = None,
    base: Path | None = None,
) -> TrainResult:
    """Trains up to spec.stop_step, going on from the newest checkpoint in `work`, else from `start`, else from nothing.

    Every rank calls it. Leaves in `work`: checkpoints/, the newest of which a later training may start from, and
    model/, unless it diverged. `learning_rate` stands in where the spec has none; `base` is what spec.method adapts.

    Raises:
        UserError, DataError: one line for the person whose spec, data or checkpoint cannot be used.
    """
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    keep_freed_memory()
    training = Training(spec, execution, data, start, work, record, learning_rate, base)
    try:
        training.run()
        status, reason = training.verdict()
    except Unsayable as error:
        raise UserError(str(error)) from None
    except Diverged as diverged:
        status, reason = "diverged", str(diverged)
        log.error("%s", reason)
    finally:
        training.checkpoints.close()
    if status == "finished":
        training.save_model()
        saved = training.checkpoints.newest
        if saved is None or saved.name != checkpoints.name_of(spec.stop_step):
            raise UserError(f"{work}: the last checkpoint could not be saved (see the log); free some space, run again")
    return training.result(status, reason)


class Training:
    """One training on this rank: what it is made of, its step, and what happens between steps. `train` drives it."""

    def __init__(
        self,
        spec: TrainSpec,
        execution: Execution,
        data: Path | TrainingData,
        start: Path | None,
        work: Path,
        record: Record,
        learning_rate: float | None,
        base: Path | None = None,
    ) -> None:
        self.spec, self.execution, self.work, self.record, self.base = spec, execution, work, record, base
        self.began = time.perf_counter()
        self.world = World()
        rate = spec.optimizer.learning_rate or learning_rate
        if rate is None:
            raise UserError("train.optimizer.learning_rate: neither given nor found by a search; give a number")
        self.learning_rate = rate
        refuse_slow_precision(spec.precision, self.world.device)
        self.examples = data if isinstance(data, TrainingData) else open_examples(data, spec)
        self.build()
        self.checkpoints = Checkpoints(work / "checkpoints", self.world, execution.keep_last)
        self.interval = Interval(self.world)
        self.finite = FiniteGuard(self.world.device)
        self.spikes = SpikeGuard(spec.spike_guard, self.world.device) if spec.spike_guard else None
        self.loss_scale = LossScale(self.world.device) if spec.precision == "fp16" else None
        self.progress = Progress()
        self.validation: dict[str, float] = {}
        self.losses: dict[str, float] = {}
        self.restore(start)

    def build(self) -> None:
        """The model, the same on every rank, then its copies or shards, then the optimizer over those."""
        spec, execution, device = self.spec, self.execution, self.world.device
        if spec.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if spec.deterministic != torch.are_deterministic_algorithms_enabled():  # asking imports the compiler: seconds
            torch.use_deterministic_algorithms(spec.deterministic)
        kind = family(spec.family)
        self.config = kind.config(**spec.model)
        self.cost = finetuning.cost(kind, self.config, spec.method, self.examples.lengths)
        torch.manual_seed(spec.seed)
        if spec.method is None:
            self.model = kind.build(self.config).to(device).train()
        else:
            self.model = finetuning.adapted_model(spec, spec.method, self.base_folder()).to(device).train()
        set_checkpointing(self.model, execution.checkpointing)
        if reason := saves_nothing(kind, self.config, execution.checkpointing):
            log.info("train.checkpointing: %s saves nothing: %s", execution.checkpointing, reason)
        if execution.compile and not getattr(self.model, "compiles", True):
            log.info("compute.compile: a %s runs as it is: torch.compile gains it nothing or redraws chance", kind.name)
        elif execution.compile:
            self.model.compile(dynamic=False)
        self.parallel = Parallel(self.model, self.world, execution.strategy, spec.precision)
        groups = finetuning.groups(self.model) if spec.method else self.model.parameter_groups()  # type: ignore[operator]
        # DDP's gradients are its buckets.
        self.optimizer = AdamW(self.model, groups, spec.optimizer, zeroes=self.parallel.strategy == "ddp")
        self.half = spec.precision != "fp32" and not self.parallel.gathers_half
        self.stochastic = bool(getattr(self.model, "stochastic", True))
        self.in_pieces = hasattr(self.model, "pieces")
        self.peak = peak_flops(device, spec.precision)

    # The step -----------------------------------------------------------------------------------------------------

    def step(self, step: int) -> None:
        """One optimiser step: fetch everything, count once, backward divided once, reduce once, update once."""
        frozen = self.at_step(step)
        indices = self.examples.train.micro_batches(step)
        micros = self.fetch(self.examples.train, indices)
        self.interval.step(step, len(indices))
        weight = self.weight(micros)
        nats = self.backward(step, micros, weight, record=True)
        gradients = self.optimizer.gradients()
        norm = self.optimizer.norm(gradients)
        scale, overflow = None, None
        if self.loss_scale is not None:
            scale = self.loss_scale.scale
            norm, overflow = self.loss_scale(norm)
        self.interval.gradient(step, norm)
        skip = self.finite(norm)
        if overflow is not None:
            skip = torch.maximum(skip, overflow)
        if self.spikes is not None:
            # The sum over ranks x weight (world size / units of the step) / world size.
            loss = self.world.total(torch.stack(nats).sum()) * weight / self.world.size
            skip = torch.maximum(skip, self.spikes(loss, norm))
        rate = self.learning_rate * rate_at(step, self.spec.schedule, self.spec.stop_step)
        self.optimizer.step(gradients, norm, rate, skip, frozen, scale)
        self.optimizer.zero_grad()

    def fetch(self, batches: Any, indices: list[np.ndarray]) -> list[Micro]:
        """This rank's share of the micro-batches, as many on every rank."""
        micros = []
        for number, examples, real in self.world.share(indices):
            arrays = batches.fetch(examples)
            units = batches.units(arrays) if real else 0
            micros.append(Micro(number, self.to_device(arrays), units, real))
        return micros

    def weight(self, micros: list[Micro]) -> Tensor:
        """World size / target units of the step over all ranks, on the device: reducing averages over the ranks."""
        # torch.full and not torch.tensor: a number becomes an argument of a kernel, and no copy waits for the device.
        units = torch.full((), sum(micro.units for micro in micros), dtype=torch.int64, device=self.world.device)
        return self.world.size / self.world.total(units).clamp_(min=1)

    def backward(self, step: int, micros: list[Micro], weight: Tensor, record: bool = False) -> list[Tensor]:
        """Adds up the gradients of sum of nats / units over micro-batches and ranks; returns this rank's nats.

        With a loss scale the gradients are that many times as large, the nats are not.
        """
        nats = []
        if self.loss_scale is not None:
            weight = weight * self.loss_scale.scale
        for round_, micro in enumerate(micros):
            last_round = round_ == len(micros) - 1
            factor = weight if micro.real else torch.zeros_like(weight)
            if self.stochastic:
                self.seed_chance(step, micro.number)
            if self.in_pieces:
                loss = self.piece_by_piece(micro, factor, last_round)
            else:
                with self.parallel.reducing(last=last_round), self.autocast():
                    loss = self.parallel.call(micro.batch)
                    loss.nats.backward(factor)
            nats.append(loss.nats.detach() if micro.real else torch.zeros_like(loss.nats))
            if record:
                self.interval.parts = list(loss.parts)  # also on a rank whose micro-batch does not count
            if record and micro.real:
                self.interval.add(micro.number, micro.units, loss.nats, loss.parts)
        return nats

    def piece_by_piece(self, micro: Micro, factor: Tensor, last_round: bool) -> Loss:
        """Forward and backward of one piece after another: what a piece held is gone before the next one begins."""
        losses = []
        for piece, last in self.model.pieces(micro.batch):  # type: ignore[operator]
            with self.parallel.reducing(last=last_round and last), self.autocast():
                loss = self.parallel.call(piece)
                loss.nats.backward(factor)
            parts = {name: part.detach() for name, part in loss.parts.items()}
            losses.append(Loss(loss.nats.detach(), loss.units, parts))
        return total_of(losses)

    def at_step(self, step: int) -> frozenset[str]:
        """Tells a model with a schedule of its own where it is; the parameter groups that this step leaves alone."""
        if not hasattr(self.model, "at_step"):
            return frozenset()
        return self.model.at_step(step, self.spec.stop_step)  # type: ignore[operator]

    def seed_chance(self, step: int, micro_batch: int) -> None:
        """Everything random in a micro-batch follows from seed, step and its global index (contract 3)."""
        seed = chance(self.spec.seed, step, micro_batch)
        # The generators by name: torch.manual_seed visits every kind of device and takes 0.3 ms.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.world.device.type, DTYPES[self.spec.precision]) if self.half else nullcontext()

    def to_device(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.world.device.type == "cpu":
            return tensors
        # From pinned memory the copy runs beside the kernels; the host goes on at once.
        return {name: tensor.pin_memory().to(self.world.device, non_blocking=True) for name, tensor in tensors.items()}

    # Between steps ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        spec, execution = self.spec, self.execution
        if spec.method is not None and self.progress.step == 0:
            self.look_at_base()
        mark = time.perf_counter()
        timed_units, timed_seconds = 0, 0.0
        for step in range(self.progress.step, spec.stop_step):
            self.step(step)
            done = step + 1
            last = done == spec.stop_step
            logs = last or done % execution.log_every == 0
            validates = last or (spec.validation.every is not None and done % spec.validation.every == 0)
            saves = last or (execution.checkpoint_every is not None and done % execution.checkpoint_every == 0)
            if not (logs or validates or saves):
                continue
            timed_units += self.look(done)
            elapsed = time.perf_counter() - mark
            timed_seconds += elapsed
            self.progress.stepping += elapsed
            metrics: dict[str, float] = {}
            if validates:
                metrics |= self.validate()
            if logs:
                metrics |= self.training_metrics(timed_units / timed_seconds)
                timed_units, timed_seconds = 0, 0.0
            if metrics and self.world.leads:
                self.record.row(done, self.cost_so_far() | metrics)
            if logs and done % execution.log_every == 0:
                self.interval.reset()
            if saves:
                self.save()
            mark = time.perf_counter()
        self.checkpoints.finish()

    def look_at_base(self) -> None:
        """The base on the new data, before any step: what fine-tuning has to better."""
        metrics = self.validate()
        self.progress.base_loss = metrics["val/loss"]
        if self.world.leads:
            self.record.row(0, self.cost_so_far() | metrics)

    def look(self, done: int) -> int:
        """Waits for the device, stops a run that is no longer finite, and moves progress on; the new units."""
        new, bad_gradient = self.interval.collect()
        bad = next((seen for seen in new if not math.isfinite(seen.nats)), None)
        if bad is not None and (bad_gradient is None or bad.step <= bad_gradient):
            self.progress.step = bad.step
            raise self.diverged(bad.step, f"the loss is not finite in micro-batch {bad.micro_batch}")
        if bad_gradient is not None:
            self.progress.step = bad_gradient
            smallest = "at the smallest loss scale, " if self.loss_scale is not None else ""
            what = f"the gradient is not finite, {smallest}from {self.culprits(bad_gradient)}"
            raise self.diverged(bad_gradient, what)
        if self.progress.first_loss is None and new:
            first = [seen for seen in new if seen.step == new[0].step]
            self.progress.first_loss = sum(s.nats for s in first) / max(1, sum(s.units for s in first))
        units = sum(seen.units for seen in new)
        self.progress = replace(self.progress, step=done, units=self.progress.units + units, validated=None)
        return units

    def diverged(self, step: int, what: str) -> Diverged:
        self.checkpoints.finish()
        return Diverged(step, f"step {step}: {what}; the last good checkpoint is {self.checkpoints.newest or 'none'}")

    def culprits(self, step: int) -> str:
        """Runs a step again, micro-batch by micro-batch: which of them brought the bad gradient.

        The guard has held the weights of that step. Ranks run a round together, so a round of several is named whole.
        """
        bad = []
        self.at_step(step)
        indices = self.examples.train.micro_batches(step)
        micros = self.fetch(self.examples.train, indices)
        weight = self.weight(micros)
        for round_, micro in enumerate(micros):
            self.optimizer.zero_grad()
            self.backward(step, [micro], weight)
            if not math.isfinite(self.optimizer.norm(self.optimizer.gradients()).item()):
                first = round_ * self.world.size
                bad += [str(i) for i in range(first, min(first + self.world.size, len(indices)))]
        if not bad:
            return "the sum of all micro-batches"
        return f"micro-batch {bad[0]}" if len(bad) == 1 else f"one of micro-batches {', '.join(bad)}"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on the fixed validation examples: sums over all of them, divided once, for any world size."""
        self.model.eval()
        micros = self.fetch(self.examples.held_out, self.examples.validation)
        # By micro-batch, like the interval: one order of summation for any world size.
        rows: dict[int, list[float]] = {}
        for micro in micros:
            if self.stochastic:
                self.seed_chance(VALIDATION, micro.number)  # the same draws at every validation
            with self.autocast():
                loss_ = self.parallel.call(micro.batch)
            names = list(loss_.parts)
            if micro.real:
                bytes_ = 0
                if self.examples.unit_bytes is not None:
                    bytes_ = self.examples.bytes_of(micro.batch["targets"].cpu().numpy())
                parts = [part.item() for part in loss_.parts.values()]
                rows[micro.number] = [loss_.nats.item(), micro.units, bytes_, *parts]
        self.model.train()
        sums = torch.zeros(len(self.examples.validation), 3 + len(names), dtype=torch.float64)
        for number, row in rows.items():
            sums[number] = torch.tensor(row, dtype=torch.float64)
        nats_, units, bytes_, *parts = (
            sum(column) for column in zip(*self.world.host_total(sums).tolist(), strict=True)
        )
        loss = nats_ / max(1.0, units)
        self.progress.validated = loss if math.isfinite(loss) else None
        means = {"loss": loss, **{name: part / max(1.0, units) for name, part in zip(names, parts, strict=True)}}
        if hasattr(self.model, "at_validation"):
            self.model.at_validation(means)  # type: ignore[operator]
        self.validation = {f"val/{name}": mean for name, mean in means.items()}
        if bytes_:
            self.validation["val/bits_per_byte"] = nats_ / math.log(2) / bytes_
        return self.validation

    def cost_so_far(self) -> dict[str, float]:
        """Stands in every row, so that every metric can be drawn against it."""
        units = self.progress.units
        return {"train/units": units, "train/flops": units * self.cost.training_flops_per_unit}

    def training_metrics(self, units_per_second: float) -> dict[str, float]:
        done = self.progress.step
        rate = self.cost.training_flops_per_unit * units_per_second
        self.losses = {f"train/{name}": mean for name, mean in self.interval.means().items()}
        metrics = self.losses | {
            "train/learning_rate": self.learning_rate * rate_at(done - 1, self.spec.schedule, self.spec.stop_step),
            "train/gradient_norm": self.interval.norm,
            "speed/units_per_second": units_per_second,
            "speed/flops_per_second": rate,
            **memory(self.world.device),
        }
        if self.peak is not None:
            metrics["speed/mfu"] = rate / (self.peak * self.world.size)
        if self.spikes is not None:
            metrics["train/skipped_steps"] = self.spikes.skipped.item()
        if self.loss_scale is not None:
            metrics["train/loss_scale"] = self.loss_scale.scale.item()
            metrics["train/overflowed_steps"] = self.loss_scale.overflows.item()
        return metrics

    # Checkpoints and results --------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, Tensor]:
        """Of the model, every tensor that training changes, by name, in place."""
        method = self.spec.method
        return self.model.state_dict() if method is None else finetuning.trained_state(self.model, method)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name, in place."""
        model = {f"model.{name}": tensor for name, tensor in self.model_state().items()}
        return model | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}

    def save(self) -> None:
        progress = replace(self.progress, seconds=self.seconds())
        content = {
            "progress": asdict(progress),
            "validated": progress.validated,
            "validation": self.validation,
            "losses": self.losses,
            "interval": self.interval.state(),
            "spikes": self.spikes.state() if self.spikes else None,
            "loss_scale": self.loss_scale.state() if self.loss_scale else None,
            "model": {"family": self.spec.family, "config": self.spec.model},
        }
        rows = []
        if self.world.leads:
            rows = [row for row in read_rows(self.record.folder) if row["step"] <= progress.step]
        self.checkpoints.save(progress.step, self.state(), content, rows)

    def base_folder(self) -> Path:
        if self.base is None:
            raise UserError("method: fine-tuning needs the input `base`, an artifact with the model it begins with")
        return self.base

    def restore(self, start: Path | None) -> None:
        """The newest complete checkpoint of this very training, else the state that an earlier one ended with."""
        self.resumed_seconds = 0.0
        path = checkpoints.newest(self.checkpoints.folder, self.world)
        own = path is not None
        if path is None:
            path = self.start_state(start)
        if path is None:
            return
        content = checkpoints.load(path, self.state(), self.world)
        self.progress = Progress(**content["progress"])
        self.resumed_seconds = self.progress.seconds
        self.interval.restore(content["interval"])
        self.validation, self.losses = content["validation"], content["losses"]
        if self.spikes and content["spikes"]:
            self.spikes.restore(content["spikes"])
        if self.loss_scale and content.get("loss_scale"):
            self.loss_scale.restore(content["loss_scale"])
        if own:
            self.checkpoints.newest = path
            if self.world.leads:
                self.replay_rows(path)
                log.info("going on from %s", path)
        elif self.progress.step != self.spec.start_step:
            raise UserError(
                f"{path}: stopped at step {self.progress.step}, but start_step is {self.spec.start_step}; "
                "a training goes on where its start stopped"
            )

    def start_state(self, start: Path | None) -> Path | None:
        if self.spec.start_step == 0:
            return None
        if start is None:
            raise UserError(
                f"start_step {self.spec.start_step}: needs the input `start`, a training that stopped there"
            )
        path = start / STATE
        damage = None
        if self.world.leads:
            try:
                checkpoints.verify(path)
            except checkpoints.Damaged as error:
                damage = str(error)
        damage = self.world.agreed(damage)
        if damage:
            raise UserError(f"{path}: cannot be continued: {damage}; train it again (--fresh)")
        return path

    def replay_rows(self, path: Path) -> None:
        """Rows up to the checkpoint travelled with it: wherever it is resumed, the record has them."""
        known = {row["step"] for row in read_rows(self.record.folder)}
        for row in checkpoints.rows_of(path):
            if row["step"] not in known:
                self.record.row(row["step"], row["metrics"], row["time"])

    def verdict(self) -> tuple[str, str | None]:
        """A run that ends clearly worse than its untrained model has diverged, though every gradient was finite."""
        step = self.progress.step
        # The base is known on the validation examples, whose text may be easier or harder than that of the training.
        untrained = self.progress.first_loss if self.spec.method is None else None
        before = "untrained model" if self.spec.method is None else "base"
        for name, loss, first in (
            ("training", self.losses.get("train/loss"), untrained),
            (
                "validation",
                self.validation.get("val/loss"),
                self.progress.base_loss if untrained is None else untrained,
            ),
        ):
            if loss is not None and not math.isfinite(loss):
                return "diverged", f"step {step}: the {name} loss is not finite"
            if loss is not None and first is not None and loss > first + 0.2 * abs(first):
                return "diverged", (
                    f"step {step}: the {name} loss is {loss:.4f}, above the {before}'s {first:.4f}; "
                    "try a smaller learning rate"
                )
        return "finished", None

    def save_model(self) -> None:
        """model/ in the work folder, the whole weights, for everything but training on; adapter/ where there is one."""
        spec = self.spec
        weights = {name: full(tensor) for name, tensor in self.model_state().items()}
        if not self.world.leads:
            return
        if spec.method is None:
            save_weights(weights, spec.family, spec.model, self.work / "model")
        else:
            finetuning.leave_model(spec, spec.method, self.base_folder(), weights, self.work)

    def seconds(self) -> float:
        return self.resumed_seconds + time.perf_counter() - self.began

    def result(self, status: str, reason: str | None) -> TrainResult:
        progress = self.progress
        losses = {name: loss for name, loss in {**self.losses, **self.validation}.items() if math.isfinite(loss)}
        return TrainResult(
            status=status,
            step=progress.step,
            units=progress.units,
            flops=progress.units * self.cost.training_flops_per_unit,
            parameters=self.cost.parameters,
            parameters_without_embeddings=self.cost.parameters_without_embeddings,
            train_loss=losses.get("train/loss"),
            validation_loss=losses.get("val/loss"),
            validation_bits_per_byte=losses.get("val/bits_per_byte"),
            learning_rate=self.learning_rate,
            seconds=self.seconds(),
            units_per_second=progress.units / progress.stepping if progress.stepping else 0.0,
            reason=reason,
            base_loss=progress.base_loss,
        )


def chance(seed: int, step: int, micro_batch: int) -> int:
    """63 bits that look random and are not."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
