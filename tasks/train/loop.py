"""Training, from a spec and data to weights: what happens between the steps (tasks/train/step.py).

Plain torch.distributed: it runs in one process, under torchrun (tasks/train/__main__.py) and in Ray Train's workers
(tasks/train/train_task.py) alike.
"""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from reducible.models.loss import Unsayable
from reducible.models.weights.model_folder import save_weights
from reducible.tasks.errors import UserError
from reducible.tasks.train import finetuning, resume
from reducible.tasks.train.allocator import keep_freed_memory
from reducible.tasks.train.build import build, required_base
from reducible.tasks.train.checkpoints import Checkpoints
from reducible.tasks.train.device import memory, refuse_slow_precision
from reducible.tasks.train.divergence import culprits, verdict
from reducible.tasks.train.examples import TrainingData, open_examples
from reducible.tasks.train.folders import CHECKPOINTS, MODEL, checkpoint_name
from reducible.tasks.train.guards import Diverged
from reducible.tasks.train.parallel import World, full
from reducible.tasks.train.peak import peak_flops
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.step import Step
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.train.validation import validate
from reducible.tasks.workflow.record import Record

log = logging.getLogger(__name__)


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
    """Trains up to spec.stop_step. Starts from the newest checkpoint in `work`, else from `start`, else from nothing.

    Every rank calls it. Writes into `work`: checkpoints/, from the newest of which a later training may start, and
    model/, unless it diverged. `learning_rate` is used if the spec has none; `base` is what spec.method adapts.

    Raises:
        UserError, DataError: one line for the person whose spec, data or checkpoint cannot be used.
    """
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    keep_freed_memory()
    training = Training(spec, execution, data, start, work, record, learning_rate, base)
    try:
        training.run()
        status, reason = verdict(training.standing, finetunes=spec.method is not None)
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
        if saved is None or saved.name != checkpoint_name(spec.stop_step):
            raise UserError(f"{work}: the last checkpoint could not be saved (see the log); free some space, run again")
    return training.result(status, reason)


class Training:
    """One training on this rank: its step, and when it is checked, validated, logged and saved. `train` drives it."""

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
        refuse_slow_precision(spec.precision, self.world.device)
        self.examples = data if isinstance(data, TrainingData) else open_examples(data, spec)
        trainee = build(spec, execution, self.world, self.examples.lengths, base)
        self.model, self.cost = trainee.model, trainee.cost
        self.peak = peak_flops(self.world.device, spec.precision)
        self.checkpoints = Checkpoints(work / CHECKPOINTS, self.world, execution.keep_last)
        self.step = Step(spec, trainee, self.examples.train, self.world, rate)
        self.standing = resume.restore(self.checkpoints, start, self.step, record)
        self.resumed_seconds = self.standing.progress.seconds

    def run(self) -> None:
        spec, execution = self.spec, self.execution
        if spec.method is not None and self.standing.progress.step == 0:
            self.look_at_base()
        mark = time.perf_counter()
        timed_units, timed_seconds = 0, 0.0
        for step in range(self.standing.progress.step, spec.stop_step):
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
            self.standing.progress.stepping += elapsed
            metrics: dict[str, float] = {}
            if validates:
                metrics |= self.validate()
            if logs:
                metrics |= self.training_metrics(timed_units / timed_seconds)
                timed_units, timed_seconds = 0, 0.0
            if metrics and self.world.leads:
                self.record.row(done, self.cost_so_far() | metrics)
            if logs and done % execution.log_every == 0:
                self.step.interval.reset()
            if saves:
                resume.save(self.checkpoints, self.step, self.standing, self.record, self.seconds())
            mark = time.perf_counter()
        self.checkpoints.finish()

    def look_at_base(self) -> None:
        """Measures the base on the new data before the first step: the loss that fine-tuning has to improve."""
        metrics = self.validate()
        self.standing.progress.base_loss = metrics["val/loss"]
        if self.world.leads:
            self.record.row(0, self.cost_so_far() | metrics)

    def look(self, done: int) -> int:
        """Waits for the device, stops a run that is no longer finite, and updates progress; returns the new units."""
        new, bad_gradient = self.step.interval.collect()
        bad = next((seen for seen in new if not math.isfinite(seen.nats)), None)
        if bad is not None and (bad_gradient is None or bad.step <= bad_gradient):
            raise self.diverged(bad.step, f"the loss is not finite in micro-batch {bad.micro_batch}")
        if bad_gradient is not None:
            smallest = "at the smallest loss scale, " if self.step.loss_scale is not None else ""
            who = culprits(self.step, bad_gradient)
            raise self.diverged(bad_gradient, f"the gradient is not finite, {smallest}from {who}")
        progress = self.standing.progress
        if progress.first_loss is None and new:
            first = [seen for seen in new if seen.step == new[0].step]
            progress.first_loss = sum(s.nats for s in first) / max(1, sum(s.units for s in first))
        units = sum(seen.units for seen in new)
        self.standing.progress = replace(progress, step=done, units=progress.units + units, validated=None)
        return units

    def diverged(self, step: int, what: str) -> Diverged:
        self.standing.progress.step = step
        self.checkpoints.finish()
        return Diverged(step, f"step {step}: {what}; the last good checkpoint is {self.checkpoints.newest or 'none'}")

    def validate(self) -> dict[str, float]:
        self.standing.validation = validate(self.step, self.examples)
        loss = self.standing.validation["val/loss"]
        self.standing.progress.validated = loss if math.isfinite(loss) else None
        return self.standing.validation

    def cost_so_far(self) -> dict[str, float]:
        """The values in every row, against which every metric can be drawn."""
        units = self.standing.progress.units
        return {"train/units": units, "train/flops": units * self.cost.training_flops_per_unit}

    def training_metrics(self, units_per_second: float) -> dict[str, float]:
        step = self.step
        rate = self.cost.training_flops_per_unit * units_per_second
        self.standing.losses = {f"train/{name}": mean for name, mean in step.interval.means().items()}
        metrics = self.standing.losses | {
            "train/learning_rate": step.rate(self.standing.progress.step - 1),
            "train/gradient_norm": step.interval.norm,
            "speed/units_per_second": units_per_second,
            "speed/flops_per_second": rate,
            **memory(self.world.device),
        }
        if self.peak is not None:
            metrics["speed/mfu"] = rate / (self.peak * self.world.size)
        if step.spikes is not None:
            metrics["train/skipped_steps"] = step.spikes.skipped.item()
        if step.loss_scale is not None:
            metrics["train/loss_scale"] = step.loss_scale.scale.item()
            metrics["train/overflowed_steps"] = step.loss_scale.overflows.item()
        return metrics

    def save_model(self) -> None:
        """Writes model/, the whole weights, for every use except further training; and adapter/ if there is one."""
        spec = self.spec
        weights = {name: full(tensor) for name, tensor in resume.model_state(self.step).items()}
        if not self.world.leads:
            return
        if spec.method is None:
            save_weights(weights, spec.family, spec.model, self.work / MODEL)
        else:
            finetuning.leave_model(spec, spec.method, required_base(self.base), weights, self.work)

    def seconds(self) -> float:
        return self.resumed_seconds + time.perf_counter() - self.began

    def result(self, status: str, reason: str | None) -> TrainResult:
        learning_rate, seconds = self.step.learning_rate, self.seconds()
        return self.standing.result(self.cost, status, reason, learning_rate=learning_rate, seconds=seconds)
