"""What a task is: a typed spec and upstream tasks (its identity), a function, and how to execute it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from reducible.tasks.workflow.identity import canonical, essence, fingerprint


@dataclass(frozen=True)
class Resources:
    """What one task holds while it runs. A task that starts its own workers holds only what they hold."""

    cpus: float = 1
    gpus: float = 0
    workers: int = 1
    memory: float = 0  # bytes that Ray reserves
    share: float = 1.0  # the part of its GPUs that it holds, beside others like it


@dataclass(frozen=True, eq=False)
class Task:
    """A pure function with a durable result (contract 5).

    Its identity is name, version, inputs, and the fields of spec that differ from their defaults. label, resources,
    execution, weight and retries are no part of it: they say what people call the task, what it holds, how it is
    carried out, how much work it is (training FLOPs; larger first), and how often it is tried again if it fails.
    """

    name: str
    version: int
    run: str
    spec: BaseModel
    inputs: Mapping[str, "Task"] = field(default_factory=dict)
    label: str = ""
    resources: Resources = Resources()
    execution: BaseModel | None = None
    weight: float = 0.0
    retries: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        return fingerprint(description(self) | {"spec": essence(self.spec)})

    @property
    def title(self) -> str:
        return self.label or self.name


class _Unknown(BaseModel):
    """The spec of an artifact of which only the identity is known."""


def finished(name: str, identity: str, label: str = "", tags: Mapping[str, str] | None = None) -> Task:
    """A stand-in for an artifact that exists already, as an input of other tasks. It cannot be run."""
    task = Task(name=name, version=0, run="", spec=_Unknown(), label=label, tags=tags or {})
    task.__dict__["identity"] = identity  # where cached_property would keep what it computed
    return task


@dataclass(frozen=True)
class Context:
    """What a task's function is given.

    staging becomes the artifact when the function returns. work is shared by all attempts of this identity and
    outlives a killed one; it holds the checkpoints. inputs are the committed folders of the upstream tasks.
    """

    name: str
    identity: str
    label: str
    spec: Any
    execution: Any
    attempt: str
    staging: Path
    work: Path
    root: Path
    inputs: Mapping[str, Path]
    tags: Mapping[str, str]


def function_of(run: str) -> Callable[[Context], None]:
    module, _, name = run.partition(":")
    function: Callable[[Context], None] = getattr(import_module(module), name)
    return function


def in_order(targets: list[Task]) -> list[Task]:
    """The targets and everything they need: each identity once, every task after its inputs."""
    seen: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.identity not in seen:
            for upstream in task.inputs.values():
                visit(upstream)
            seen[task.identity] = task

    for target in targets:
        visit(target)
    return list(seen.values())


def description(task: Task) -> dict[str, Any]:
    """The full description of a task, as its manifest keeps it, with the spec's fields that are at their defaults."""
    return {
        "task": task.name,
        "version": task.version,
        "spec": canonical(task.spec),
        "inputs": {name: upstream.identity for name, upstream in task.inputs.items()},
    }
