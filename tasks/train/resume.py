"""What a checkpoint holds, and the checkpoint from which a training continues."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from reducible.tasks.errors import UserError
from reducible.tasks.train import checkpoints, finetuning
from reducible.tasks.train.checkpoints import Checkpoints
from reducible.tasks.train.folders import STATE
from reducible.tasks.train.parallel import World
from reducible.tasks.train.progress import Progress, Standing
from reducible.tasks.train.step import Step
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.record import Record, read_rows

log = logging.getLogger(__name__)


def model_state(step: Step) -> dict[str, Tensor]:
    """Every tensor of the model that training changes, by name, not copied."""
    method = step.spec.method
    return step.model.state_dict() if method is None else finetuning.trained_state(step.model, method)


def state(step: Step) -> dict[str, Tensor]:
    """Every tensor that training changes, by name, not copied."""
    model = {f"model.{name}": tensor for name, tensor in model_state(step).items()}
    return model | {f"optimizer.{name}": tensor for name, tensor in step.optimizer.state().items()}


def save(folder: Checkpoints, step: Step, standing: Standing, record: Record, seconds: float) -> None:
    progress = replace(standing.progress, seconds=seconds)
    content = {
        "progress": asdict(progress),
        "validated": progress.validated,
        "validation": standing.validation,
        "losses": standing.losses,
        "interval": step.interval.state(),
        "spikes": step.spikes.state() if step.spikes else None,
        "loss_scale": step.loss_scale.state() if step.loss_scale else None,
        "model": {"family": step.spec.family, "config": step.spec.model},
    }
    rows = []
    if step.world.leads:
        rows = [row for row in read_rows(record.folder) if row["step"] <= progress.step]
    folder.save(progress.step, state(step), content, rows)


def restore(folder: Checkpoints, start: Path | None, step: Step, record: Record) -> Standing:
    """Continues from the newest complete checkpoint of this training, else from the state of an earlier one (`start`).

    Fills the step's tensors, guards and interval, and adds the rows up to the checkpoint to the record.
    """
    path = checkpoints.newest(folder.folder, step.world)
    own = path is not None
    if path is None:
        path = start_state(step.spec, start, step.world)
    if path is None:
        return Standing()
    content = checkpoints.load(path, state(step), step.world)
    progress = Progress(**content["progress"])
    step.interval.restore(content["interval"])
    if step.spikes and content["spikes"]:
        step.spikes.restore(content["spikes"])
    if step.loss_scale and content.get("loss_scale"):
        step.loss_scale.restore(content["loss_scale"])
    if own:
        folder.newest = path
        if step.world.leads:
            replay_rows(path, record)
            log.info("going on from %s", path)
    elif progress.step != step.spec.start_step:
        raise UserError(
            f"{path}: stopped at step {progress.step}, but start_step is {step.spec.start_step}; "
            "a training continues at the step where its start stopped"
        )
    return Standing(progress, content["validation"], content["losses"])


def start_state(spec: TrainSpec, start: Path | None, world: World) -> Path | None:
    """The verified last checkpoint of an earlier training; None if this one begins at step 0."""
    if spec.start_step == 0:
        return None
    if start is None:
        raise UserError(f"start_step {spec.start_step}: needs the input `start`, a training that stopped there")
    path = start / STATE
    damage = None
    if world.leads:
        try:
            checkpoints.verify(path)
        except checkpoints.Damaged as error:
            damage = str(error)
    damage = world.agreed(damage)
    if damage:
        raise UserError(f"{path}: cannot be continued: {damage}; train it again (--fresh)")
    return path


def replay_rows(path: Path, record: Record) -> None:
    """Adds the rows up to the checkpoint, which it holds, so that the record has them wherever it is resumed."""
    known = {row["step"] for row in read_rows(record.folder)}
    for row in checkpoints.rows_of(path):
        if row["step"] not in known:
            record.row(row["step"], row["metrics"], row["time"])
