"""The context of a task that a test calls itself: without a store, everything in one folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.tasks.workflow.task import Context


def context_of(
    label: str, spec: Any, inputs: Mapping[str, Path], folder: Path, execution: Any = None, staging: str = "staging"
) -> Context:
    """`label` begins with the task's name. The folders staging and work are made."""
    for name in (staging, "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    name, _, sweep = label.partition(" ")
    return Context(
        name=name,
        identity="0" * 64,
        label=label,
        spec=spec,
        execution=execution,
        attempt="a",
        staging=folder / staging,
        work=folder / "work",
        root=folder,
        inputs=dict(inputs),
        tags={"sweep": sweep},
    )
