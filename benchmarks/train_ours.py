"""Our contestants of train_peers.py: one process, or the train task through Ray Train with MLflow following."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from train_turns import Turns

from reducible.tasks.train.optimizers.adamw import AdamWSpec
from reducible.tasks.train.train_spec import Execution, ScheduleSpec, TrainSpec

SHAPE = "REDUCIBLE_BENCHMARK_SHAPE"


def main(kind: str, shape: dict[str, Any]) -> None:
    os.environ[SHAPE] = json.dumps(shape)
    with_ray(shape) if kind == "ray" else alone(shape)


def spec_of(shape: dict[str, Any]) -> TrainSpec:
    return TrainSpec(
        model=shape["model"],
        sequence=shape["sequence"],
        stop_step=shape["steps"] * shape["turns"] + 1,
        batch=shape["rows"] * shape["sequence"],
        micro_batch=shape["rows"],
        optimizer=AdamWSpec(learning_rate=1e-3),
        schedule=ScheduleSpec(kind="cosine"),
        precision=shape["precision"],
    )


def alone(shape: dict[str, Any]) -> None:
    from reducible.tasks.train.train_task import train_here

    take_turns(shape)
    work = Path(shape["folder"]) / "work"
    work.mkdir()
    train_here(
        {
            "spec": spec_of(shape).model_dump_json(),
            "execution": Execution().model_dump_json(),
            "data": shape["data"],
            "start": None,
            "work": str(work),
            "attempt": "benchmark",
            "learning_rate": None,
        }
    )


def with_ray(shape: dict[str, Any]) -> None:
    from pydantic import BaseModel

    from reducible.pipelines.engine import engine
    from reducible.tasks.workflow.store import Store
    from reducible.tasks.workflow.task import Resources, Task, description

    class Nothing(BaseModel):
        pass

    store = Store(Path(shape["folder"]) / "root")
    data = Task("dataset", 1, "none:run", Nothing())
    with store.staged(data.name, data.identity, "data", description(data)) as (_, staging):
        shutil.copytree(shape["data"], staging, dirs_exist_ok=True)
    train = Task(
        "train",
        1,
        "train_ours:run",
        spec_of(shape),
        {"data": data},
        "train benchmark",
        Resources(cpus=0),
        Execution(),
        weight=1e9,
        tags={"sweep": "benchmark"},
    )
    with engine(store) as pipeline:
        outcomes = pipeline.make([train])
    print(outcomes[train.identity])


def run(context: Any) -> None:
    """The train task, but one worker too goes through Ray Train."""
    from reducible.tasks.train import train_task as task

    task.train_as_worker = as_worker
    task.train_here = lambda job: task.train_on_workers(job, context.execution)
    task.run(context)


def as_worker(job: dict[str, Any]) -> dict[str, Any]:
    from reducible.tasks.train.train_task import train_here

    take_turns(json.loads(os.environ[SHAPE]))
    return train_here(job)


def take_turns(shape: dict[str, Any]) -> None:
    """From here on, the training of this process waits at the borders of turns."""
    from reducible.tasks.train import loop

    turns = Turns(Path(shape["folder"]), shape["steps"], shape["core"], endless=False)
    open_examples = loop.open_examples

    class Borders:
        def __init__(self, batches: Any) -> None:
            self.batches, self.fetch, self.units = batches, batches.fetch, batches.units

        def micro_batches(self, step: int) -> list:
            turns.at(step)
            return self.batches.micro_batches(step)

    def opened(data: Path, spec: TrainSpec) -> Any:
        examples = open_examples(data, spec)
        object.__setattr__(examples, "train", Borders(examples.train))
        return examples

    loop.open_examples = opened


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
