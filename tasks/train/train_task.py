"""The train task. One worker runs inside its Ray task; several run under Ray Train's TorchTrainer."""

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reducible.data.errors import DataError
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.errors import UserError
from reducible.tasks.train.allocator import ENVIRONMENT
from reducible.tasks.train.finetuning import note_on
from reducible.tasks.train.folders import ADAPTER, CHECKPOINTS, MODEL, STATE, complete
from reducible.tasks.train.loop import train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, copy_record
from reducible.tasks.workflow.task import Context

RESTARTS = 3
"""How often a training with several workers is restarted after one of them was lost."""


def run(context: Context) -> None:
    """Inputs: data; and if the spec asks for them, start (an earlier training), search (a learning rate) and base."""
    spec: TrainSpec = context.spec
    execution: Execution = context.execution
    learning_rate = found_learning_rate(context)
    record = Record(context.work / "record", context.attempt)
    describe(record, context, learning_rate)
    job = {
        "spec": spec.model_dump_json(),
        "execution": execution.model_dump_json(),
        "data": str(context.inputs["data"]),
        "start": str(context.inputs["start"]) if "start" in context.inputs else None,
        "base": str(context.inputs["base"]) if "base" in context.inputs else None,
        "work": str(context.work),
        "attempt": context.attempt,
        "learning_rate": learning_rate,
    }
    result = TrainResult(**(train_here(job) if execution.workers == 1 else train_on_workers(job, execution)))
    adapter = note_on(spec.method, context.work) if spec.method else ""
    record.note(summary(result, open_dataset(context.inputs["data"]).unit) + adapter)
    leave(result, context.work, context.staging)


def train_here(job: dict[str, Any]) -> dict[str, Any]:
    """Trains in one process, alone or as one of several workers. Paths are absolute: workers have other folders."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Path(job["work"])
    result = train(
        TrainSpec.model_validate_json(job["spec"]),
        Execution.model_validate_json(job["execution"]),
        data=Path(job["data"]),
        start=Path(job["start"]) if job["start"] else None,
        work=work,
        # A restart by Ray Train is the same attempt of the task, but two processes must not append to one file.
        record=Record(work / "record", f"{job['attempt']}-{os.getpid()}"),
        learning_rate=job["learning_rate"],
        base=Path(job["base"]) if job["base"] else None,
    )
    return asdict(result)


def train_on_workers(job: dict[str, Any], execution: Execution) -> dict[str, Any]:
    """Trains under Ray Train, which places the workers, connects them and restarts them if one is lost.

    Ray Train's own state is not used: the run has a fresh name, its workers find the newest complete checkpoint
    themselves, and they report only the result.
    """
    # Ray Train's controller and workers read these: notice a dead worker in a fraction of a second, and never hang.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "600")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: dict[str, float] = {"CPU": execution.cpus_per_worker}
    if execution.gpus_per_worker:
        resources["GPU"] = execution.gpus_per_worker
    runs = Path(job["work"]) / "ray"
    trainer = TorchTrainer(
        train_as_worker,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if execution.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"train-{job['attempt']}",
            storage_path=str(runs),
            failure_config=FailureConfig(max_failures=RESTARTS),
            worker_runtime_env={"env_vars": ENVIRONMENT},
        ),
    )
    try:
        value = trainer.fit().return_value
    finally:
        shutil.rmtree(runs, ignore_errors=True)
    if "mistake" in value:
        raise UserError(value["mistake"])
    result: dict[str, Any] = value
    return result


def train_as_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Returns a user's mistake as a value. If it were raised, Ray Train would restart three times before showing it."""
    try:
        return train_here(job)
    except (UserError, DataError) as error:
        return {"mistake": str(error)}


def found_learning_rate(context: Context) -> float | None:
    """The learning rate that the search in this cell found, if the spec has none."""
    if context.spec.optimizer.learning_rate is not None or "search" not in context.inputs:
        return None
    return float(json.loads((context.inputs["search"] / "result.json").read_text())["learning_rate"])


def describe(record: Record, context: Context, learning_rate: float | None) -> None:
    dataset = open_dataset(context.inputs["data"])
    parameters = context.spec.model_dump(mode="json") | {"execution": context.execution.model_dump(mode="json")}
    if learning_rate is not None:
        parameters["optimizer"]["learning_rate"] = learning_rate
    described = [dataset.described(split) for split in ("train", "validation")]
    record.describe("train", context.label, parameters, context.tags, described)


def summary(result: TrainResult, unit: str = "token") -> str:
    """The run's note: what a reader in MLflow wants to know first."""
    head = f"**{result.status}** at step {result.step:,}"
    if result.reason:
        return f"{head}: {result.reason}\n"
    bits = result.validation_bits_per_byte
    loss = "-" if result.validation_loss is None else f"{result.validation_loss:.4f} nats per {unit}"
    return (
        f"{head}. Validation loss {loss}"
        + (f", {bits:.4f} bits per byte" if bits is not None else "")
        + (f", {result.base_loss:.4f} before fine-tuning" if result.base_loss is not None else "")
        + f".\n\n| parameters | without embeddings | training {unit}s | FLOPs | learning rate | {unit}s/s |\n"
        f"|---:|---:|---:|---:|---:|---:|\n"
        f"| {result.parameters:,} | {result.parameters_without_embeddings:,} | {result.units:,} | {result.flops:.3g} "
        f"| {result.learning_rate:.3g} | {result.units_per_second:,.0f} |\n"
    )


def leave(result: TrainResult, work: Path, staging: Path) -> None:
    """Writes the artifact: result.json, record/ and, if the training finished, model/ and state/."""
    (staging / "result.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    copy_record(work / "record", staging / "record")
    if result.status == "finished":
        for left in (MODEL, ADAPTER):
            if (work / left).is_dir():
                shutil.copytree(work / left, staging / left)
        # Copied, not moved: if the commit fails, the next attempt still finds its last checkpoint.
        shutil.copytree(complete(work / CHECKPOINTS)[-1], staging / STATE, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
