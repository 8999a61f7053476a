"""What a fit is asked to do: the options of the pure function and the spec of the task around it."""

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator

from reducible.tasks.fit.laws.registry import form_named
from reducible.tasks.fit.objective import ABSOLUTE, Floats, Problem
from reducible.tasks.workflow.frozen import Frozen

VERSION = 4
"""Raised when the same spec and inputs would give another fit."""
AUTO = "auto"
"""In place of a form's name: the form that predicts best by back-test."""


class FitOptions(Frozen):
    """How to fit a table of runs."""

    form: str = Field(default="chinchilla", description="which law: a name in tasks/fit/laws/registry.py, or auto")
    counts: Literal["parameters", "parameters_without_embeddings"] = "parameters"
    bootstrap: int = Field(default=1000, ge=100, description="draws behind every interval")
    seed: int = 0
    objective: Literal["huber", "l1", "least-squares"] = "huber"
    delta: float = Field(default=1e-3, gt=0, description="where Huber's loss turns linear, in units of the residuals")
    residuals: Literal["log", "raw"] = Field(
        default="log", description="of the log loss, or of the loss in units of the runs' geometric mean"
    )
    above: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="weight of runs above the law against those below: under-tuned runs can only be too high",
    )
    isoflop: Literal["parabola", "akima"] = "parabola"
    window: float = Field(default=4.0, gt=1, description="isoFLOP parabolas use sizes within this factor")
    noise_draws: int | None = Field(
        default=None, ge=100, description="draws of the runs' noise behind isoFLOP minima; as many as bootstrap if None"
    )

    @field_validator("form")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if name == AUTO else form_named(name).name

    def posed(self, problem: Problem, weight: Floats | None = None) -> Problem:
        """The problem of a form with the objective that is asked for, and the runs' weights."""
        delta = {"huber": self.delta, "l1": ABSOLUTE, "least-squares": math.inf}[self.objective]
        if weight is not None:
            weight = weight / weight.mean()
        return replace(problem, delta=delta, logarithmic=self.residuals == "log", above=self.above, weight=weight)


class Cell(Frozen):
    """One planned run of a sweep: which input holds its result and where it stood in the plan."""

    input: str
    label: str
    budget: float | None = None
    seed: int | None = None
    search: str | None = None
    """The input that holds the search of its learning rate, if it had one."""


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
    unique_tokens: int | None = Field(
        default=None, description="target units of the training data, if some cell reads more than these"
    )
