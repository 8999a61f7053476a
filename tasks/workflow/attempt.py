"""One attempt at one task, in the process that runs it."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.data.errors import DataError
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.code_version import code_version
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Context, Task, description, function_of


def payload_of(task: Task) -> dict[str, Any]:
    """What is sent to the worker: this task and the identities of its inputs, not the graph."""
    return {
        "name": task.name,
        "identity": task.identity,
        "label": task.title,
        "run": task.run,
        "spec": task.spec,
        "execution": task.execution,
        "described": description(task),
        "inputs": {name: (upstream.name, upstream.identity) for name, upstream in task.inputs.items()},
        "tags": dict(task.tags),
        "code": code_version(),
    }


def run_task(payload: Mapping[str, Any], root: str) -> str:
    """Runs on a worker."""
    os.environ["REDUCIBLE_CODE"] = payload["code"]  # of the driver: a worker may run from an upload without .git
    return str(run_here(payload, Store(root)))


def run_here(payload: Mapping[str, Any], store: Store) -> Path:
    """Runs one task in this process and commits its artifact; returns the artifact's folder."""
    name, identity = payload["name"], payload["identity"]
    artifact = store.artifact(name, identity)
    if store.committed(name, identity):
        return artifact
    work = store.work(name, identity)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with store.staged(name, identity, payload["label"], payload["described"]) as (attempt, staging):
            function_of(payload["run"])(
                Context(
                    name=name,
                    identity=identity,
                    label=payload["label"],
                    spec=payload["spec"],
                    execution=payload["execution"],
                    attempt=attempt,
                    staging=staging,
                    work=work,
                    root=store.root,
                    inputs={key: store.artifact(*where) for key, where in payload["inputs"].items()},
                    tags=payload["tags"],
                )
            )
    except (UserError, DataError):
        raise
    except Exception as error:
        if store.committed(name, identity):  # another attempt committed first and removed the work folder
            return artifact
        log = work / "error.log"
        log.write_text(traceback.format_exc())
        raise RuntimeError(f"{type(error).__name__}: {one_line(error)} (traceback in {log})") from None
    return artifact


def one_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
