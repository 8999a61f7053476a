"""Small tasks for the tests of the executor."""

import os
import signal
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reducible.tasks.errors import UserError
from reducible.tasks.workflow.task import Context, Resources, Task


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: int = 0
    fail: bool = False
    kill: str = ""  # a file: the first attempt leaves it behind and dies


def run(context: Context) -> None:
    with (context.root / "calls.txt").open("a") as log:
        log.write(f"{context.label}\n")
    if context.spec.fail:
        raise UserError(f"value: {context.spec.value} is refused; give another")
    if context.spec.kill and not Path(context.spec.kill).exists():
        Path(context.spec.kill).touch()
        (context.work / "checkpoint").write_text("half way")
        os.kill(os.getpid(), signal.SIGKILL)
    total = context.spec.value + sum(int((folder / "sum").read_text()) for folder in context.inputs.values())
    (context.staging / "sum").write_text(str(total))
    if (context.work / "checkpoint").exists():
        (context.staging / "resumed").write_text((context.work / "checkpoint").read_text())


def bug(context: Context) -> None:
    raise ZeroDivisionError("one over nothing")


def task(label: str, value: int = 1, inputs: tuple[Task, ...] = (), **spec: object) -> Task:
    return Task(
        name="add",
        version=1,
        run="dag:run",
        spec=Spec(value=value, **spec),
        inputs={f"input-{i}": upstream for i, upstream in enumerate(inputs)},
        label=label,
        resources=Resources(cpus=1),
    )
