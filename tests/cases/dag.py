"""Small tasks for the tests of the executor."""

import os
import signal
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reducible.tasks.errors import UserError
from reducible.tasks.workflow.task import Context, Resources, Task


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: int = 0
    fail: bool = False
    kill: str = ""  # a file: the first attempt leaves it behind and dies
    dies: bool = False  # every attempt does
    fails: int = 0  # so many attempts fail as a program does
    company: int = 0  # waits until so many tasks have come, and a little longer


def run(context: Context) -> None:
    with (context.root / "calls.txt").open("a") as log:
        log.write(f"{context.label}\n")
    if context.spec.fail:
        raise UserError(f"value: {context.spec.value} is refused; give another")
    if context.spec.kill and not Path(context.spec.kill).exists():
        Path(context.spec.kill).touch()
        (context.work / "checkpoint").write_text("half way")
        os.kill(os.getpid(), signal.SIGKILL)
    if context.spec.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if context.spec.fails:
        import ray

        resources = ray.get_runtime_context().get_assigned_resources()
        with (context.work / "attempts.txt").open("a") as log:
            log.write(f"{resources.get('GPU', 0)}\n")
        attempts = (context.work / "attempts.txt").read_text()
        if len(attempts.splitlines()) <= context.spec.fails:
            raise RuntimeError("not this time")
        (context.staging / "attempts.txt").write_text(attempts)
    began = time.time()
    while time.time() < began + 60 and len((context.root / "calls.txt").read_text().split()) < context.spec.company:
        time.sleep(0.05)
    time.sleep(0.3 * bool(context.spec.company))
    (context.staging / "times").write_text(f"{began} {time.time()}")
    total = context.spec.value + sum(int((folder / "sum").read_text()) for folder in context.inputs.values())
    (context.staging / "sum").write_text(str(total))
    if (context.work / "checkpoint").exists():
        (context.staging / "resumed").write_text((context.work / "checkpoint").read_text())


def bug(context: Context) -> None:
    raise ZeroDivisionError("one over nothing")


def task(
    label: str,
    value: int = 1,
    inputs: tuple[Task, ...] = (),
    resources: Resources | None = None,
    weight: float = 0.0,
    retries: int = 0,
    **spec: object,
) -> Task:
    return Task(
        name="add",
        version=1,
        run="dag:run",
        spec=Spec(value=value, **spec),
        inputs={f"input-{i}": upstream for i, upstream in enumerate(inputs)},
        label=label,
        resources=resources or Resources(cpus=1),
        weight=weight,
        retries=retries,
    )
