"""Trainings that read their data more than once, which `plan` and `sweep` say before any of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.fit.repeats import repeated, repeats_note
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


def warning_of_repeats(training: Sequence[Task], store: Store) -> str | None:
    """A sentence if any of these trainings reads its data again; None if not, or if the dataset is not made yet."""
    units = _unique_units(training, store)
    return repeats_note([_units_read(task) for task in training], units) if units else None


def repeated_units(training: Sequence[Task], store: Store) -> int | None:
    """The unique units of the dataset if any of these trainings reads more."""
    units = _unique_units(training, store)
    return units if units and repeated([_units_read(task) for task in training], units).any() else None


def _unique_units(training: Sequence[Task], store: Store) -> int:
    """Target units of the training split that all of them read; 0 while the dataset is not made."""
    dataset = training[0].inputs.get("data") if training else None
    if dataset is None or not store.committed("dataset", dataset.identity):
        return 0
    units: int = open_dataset(store.artifact("dataset", dataset.identity)).units("train")
    return units


def _units_read(task: Task) -> int:
    spec: Any = task.spec
    units: int = spec.stop_step * spec.batch  # a branch has read what its trunk read
    return units
