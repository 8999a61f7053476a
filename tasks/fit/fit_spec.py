"""What a fit is asked to do: the options of the pure function and the spec of the task around it."""

from typing import Literal

from pydantic import Field, field_validator

from reducible.tasks.fit.laws.registry import form_named
from reducible.tasks.workflow.frozen import Frozen

VERSION = 2
"""Raised when the same spec and inputs would give another fit."""


class FitOptions(Frozen):
    """How to fit a table of runs."""

    form: str = Field(default="chinchilla", description="which law: a name in tasks/fit/laws/registry.py")
    counts: Literal["parameters", "parameters_without_embeddings"] = "parameters"
    bootstrap: int = Field(default=1000, ge=100, description="draws behind every interval")
    seed: int = 0
    delta: float = Field(default=1e-3, gt=0, description="where Huber's loss turns linear, in log loss")
    window: float = Field(default=4.0, gt=1, description="isoFLOP parabolas use sizes within this factor")

    @field_validator("form")
    @classmethod
    def _known(cls, name: str) -> str:
        return form_named(name).name


class Cell(Frozen):
    """One planned run of a sweep: which input holds its result and where it stood in the plan."""

    input: str
    label: str
    budget: float | None = None
    seed: int | None = None


class Excluded(Frozen):
    """A planned run that has no result, and why."""

    label: str
    reason: str


class FitSpec(Frozen):
    """The fit of a sweep (identity)."""

    name: str = "fit"
    options: FitOptions = FitOptions()
    cells: tuple[Cell, ...]
    excluded: tuple[Excluded, ...] = ()
