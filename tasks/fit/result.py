"""The results of a fit, as frozen dataclasses that fit.json stores and that report, `predict` and CLI read.

Units: N parameters, D training target units, C training FLOPs, loss in nats per target unit.
Every interval is 95 %.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.cost import Cost, Floats
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.registry import form_named

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; an interval that is open above has high = inf, an unknown one has nan."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]")

    @property
    def short(self) -> str:
        """Three digits, with the interval if it is known and has a width: for counts and costs."""
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if self.low < self.high else "")


def estimate(value: float, draws: Floats) -> Estimate:
    """The 95 % percentile interval; infinite draws count, missing ones do not."""
    draws = np.sort(draws[~np.isnan(draws)])
    if not len(draws):
        return Estimate(float(value))
    low, high = (draws[int(round(q * (len(draws) - 1)))] for q in (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Run:
    """One row of the table: used by the fit, or left out with the reason."""

    name: str
    N: float  # nan if the table does not know it, and the form does not read it
    D: float  # as N
    C: float
    loss: float
    budget: float | None = None
    seed: int | None = None
    status: str = "finished"
    used: bool = True
    reason: str | None = None  # why it was left out, or why one that is used deserves a look
    fitted: float | None = None  # loss of the law at this (N, D)
    residual: float | None = None  # log(loss) - log(fitted)
    unique_tokens: float | None = None  # U: how many of D differ
    weight: float | None = None  # in the objective; all alike if none is given
    device_flops: float | None = None  # FLOP/s that one of its devices reached while it stepped


@dataclass(frozen=True)
class Law:
    """A form with fitted parameters; intervals by bootstrap, E's the wider of that and of the profile on each side."""

    form: Form
    parameters: dict[str, Estimate]  # by name, in the form's order
    draws: tuple[tuple[float, ...], ...] = ()  # bootstrap, each in the form's order

    def __getitem__(self, name: str) -> Estimate:
        return self.parameters[name]

    @property
    def E(self) -> Estimate:
        """The irreducible loss: every form has one."""
        return self.parameters["E"]

    @property
    def theta(self) -> Floats:
        """The fitted parameters (size,)."""
        return np.array([estimate.value for estimate in self.parameters.values()])

    @property
    def table(self) -> Floats:
        """The bootstrap draws (draws, size)."""
        return np.array(self.draws, dtype=float).reshape(-1, self.form.size)

    def loss(self, **columns: ArrayLike) -> Floats:
        """Expected loss at given columns of the form, such as N and D; they broadcast."""
        return self.form.loss(self.theta, **columns)


@dataclass(frozen=True)
class Allocation:
    """N* = n C^a and D* = d C^b along the compute-optimal frontier; a and b with intervals.

    The law's own optimum is not quite a power of C where tiny models have overhead: its power goes through the
    exact optima at the smallest and at ten times the largest C of the runs. `predict` uses the exact ones.
    """

    approach: str  # "law" (closed form) or "isoflop" (minima of the budgets)
    a: Estimate
    b: Estimate
    n: float
    d: float
    # Bootstrap (a, b, log n, log d): bands of N*(C) and D*(C). A law draw that has no optimum is left out.
    draws: tuple[tuple[float, float, float, float], ...] = ()

    def N(self, C: ArrayLike) -> Floats:
        return self.n * np.asarray(C, dtype=float) ** self.a.value

    def D(self, C: ArrayLike) -> Floats:
        return self.d * np.asarray(C, dtype=float) ** self.b.value

    def N_draws(self, C: ArrayLike) -> Floats:
        """N* of every draw, shape (draws, *shape of C)."""
        return self._draws(C, 0)

    def D_draws(self, C: ArrayLike) -> Floats:
        """D* of every draw, shape (draws, *shape of C)."""
        return self._draws(C, 1)

    def _draws(self, C: ArrayLike, which: int) -> Floats:
        C = np.asarray(C, dtype=float)
        draws = np.asarray(self.draws).reshape(-1, 4)
        shape = (-1, *([1] * C.ndim))
        return np.exp(draws[:, 2 + which].reshape(shape) + draws[:, which].reshape(shape) * np.log(C))


@dataclass(frozen=True)
class IsoFlop:
    """One budget's parabola of loss over log N, and its minimum; `refused` says why there is none."""

    C: float
    runs: tuple[str, ...]  # all runs of the budget
    window: tuple[float, float]  # smallest and largest N whose runs made the parabola
    # loss = curve[0] + curve[1] x + curve[2] x^2 with x = log N - log centre
    curve: tuple[float, float, float] | None
    centre: float
    N: Estimate | None
    D: Estimate | None
    loss: Estimate | None
    refused: str | None = None

    def parabola(self, N: ArrayLike) -> Floats:
        """The parabola's loss at N (only where `curve` is not None)."""
        assert self.curve is not None
        x = np.log(np.asarray(N, dtype=float) / self.centre)
        return self.curve[0] + self.curve[1] * x + self.curve[2] * x * x


@dataclass(frozen=True)
class Frontier:
    """L(C) = E + K C^-gamma through the minima of the budgets; None if the minima are too few."""

    points: tuple[IsoFlop, ...]
    E: Estimate | None = None
    K: Estimate | None = None
    gamma: Estimate | None = None
    draws: tuple[tuple[float, float, float], ...] = ()  # (E, K, gamma)
    verdict: str = ""

    def loss(self, C: ArrayLike) -> Floats:
        """Loss of the fitted frontier at C (only where it was fitted)."""
        assert self.E is not None and self.K is not None and self.gamma is not None
        return self.E.value + self.K.value * np.asarray(C, dtype=float) ** -self.gamma.value

    def loss_draws(self, C: ArrayLike) -> Floats:
        """Loss of every draw, shape (draws, *shape of C)."""
        C = np.asarray(C, dtype=float)
        E, K, gamma = np.asarray(self.draws).reshape(-1, 3).T.reshape(3, -1, *([1] * C.ndim))
        return E + K * C**-gamma


@dataclass(frozen=True)
class ProfileOfE:
    """The objective minimised over all but E, on a grid of E; where it is below `threshold` lies the interval."""

    E: tuple[float, ...]
    objective: tuple[float, ...]
    minimum: float
    threshold: float
    interval: Estimate  # low 0 or high inf: the profile is open on that side
    bootstrap: Estimate  # the bootstrap's interval for E, for comparison


@dataclass(frozen=True)
class Health:
    """What an expert asks before believing a fit."""

    runs: int
    cells: int  # runs at distinct (N, D)
    starts: int
    share_at_best: float  # of the starts, within 1e-4 (relative) of the best objective
    basins: int  # distinct optima among the starts that came to rest
    objective: float  # sum of Huber terms on log residuals
    gradient_norm: float  # projected gradient in scaled parameters, relative to the objective's scale
    condition_number: float  # of the Jacobian in scaled parameters
    bound_hits: tuple[str, ...]  # parameters at a bound: "E = 0"
    residual_deviation: float  # robust standard deviation of log residuals
    residual_largest: float  # largest absolute log residual
    residual_largest_run: str
    r_squared: float  # of log reducible loss
    identified: bool  # whether E is, so that its interval stands for itself
    splits: bool  # whether these runs say how to split compute between N and D; if not, nothing is predicted
    verdict: str  # one sentence about E
    warnings: tuple[str, ...] = ()  # sentences: outliers by name, few starts at the best, ...
    weak: bool = False  # E is bounded, but for the reasons in the verdict its interval does not stand for itself
    findings: tuple[str, ...] = ()  # sentences that speak against the law as a whole, gravest first
    advice: str = ""  # the run that would tell most about E

    @property
    def bounded(self) -> bool:
        """Whether the interval of E has two ends, so that it can be quoted."""
        return self.identified or self.weak

    @property
    def level(self) -> str:
        return "identified" if self.identified else "weakly identified" if self.weak else "not identified"


@dataclass(frozen=True)
class BackTest:
    """Fit on the runs up to `below` FLOPs, predict one run above."""

    below: float
    run: str
    C: float
    ratio: float  # C / below: the extrapolation
    predicted: float
    actual: float
    error: float  # predicted / actual - 1, signed


@dataclass(frozen=True)
class Ranked:
    """A form and its absolute relative errors on the back-test's predictions; `reason` says why it has none."""

    form: str
    median: float = math.nan
    worst: float = math.nan
    mean: float = math.nan  # over levels of compute, each by its mean
    equal: bool = False  # whether these runs cannot tell it from the best
    reason: str = ""


@dataclass(frozen=True)
class Ranking:
    """Forms of a law by rolling back-test, best first."""

    forms: tuple[Ranked, ...]
    chosen: str
    told: bool  # whether one form is better than all others beyond chance
    sentence: str
    levels: int = 0
    predictions: int = 0  # that all ranked forms made


@dataclass(frozen=True)
class Variant:
    """What the fit says if one choice is another: E, and the best size and loss at ten times the largest compute."""

    label: str
    E: float
    N: float  # nan if the form has no best size
    loss: float


@dataclass(frozen=True)
class Fit:
    """Everything the fit found."""

    runs: tuple[Run, ...]
    counts: str  # what N counts: "parameters" or "parameters_without_embeddings"
    law: Law | None  # None if the runs cannot carry its parameters; health.verdict says why
    cost: Cost
    health: Health
    profile: ProfileOfE | None
    allocation: Allocation | None  # from the law
    frontier: Frontier
    isoflop: Allocation | None  # from the budgets' minima
    back_tests: tuple[BackTest, ...]
    seconds: float
    options: dict[str, Any]
    ranking: Ranking | None = None  # of the forms, if the form was to be chosen
    untested: tuple[str, ...] = ()  # sentences: levels of compute that cannot be back-tested, and why
    sensitivity: tuple[Variant, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for the reader: "C was absent and is taken as 6ND", ...

    @property
    def form(self) -> Form:
        """The form that was fitted. A fit.json that names none is Chinchilla's."""
        return form_named(self.options.get("form", "chinchilla"))

    @property
    def used(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.used)

    @property
    def excluded(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not run.used)

    @property
    def largest_compute(self) -> float:
        """C of the most expensive run that was used: extrapolation starts here."""
        return max(run.C for run in self.used)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: nan becomes null, infinities the strings "inf" and "-inf"; a law is flat, its form an option."""
        content = plain(dataclasses.replace(self, law=None))
        if self.law is not None:
            content["law"] = {**plain(self.law.parameters), "draws": plain(self.law.draws)}
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Fit:
        fit: Fit = typed(cls, {**content, "law": None})
        if (law := content["law"]) is None:
            return fit
        form = fit.form
        parameters = {name: typed(Estimate, law[name]) for name in form.parameters}
        draws = typed(tuple[tuple[float, ...], ...], law["draws"])
        return dataclasses.replace(fit, law=Law(form, parameters, draws))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Fit:
        return cls.from_dict(json.loads(path.read_text()))


@dataclass(frozen=True)
class Prediction:
    """What to train with a budget, or what a loss costs; intervals hold the law's uncertainty and run noise."""

    compute: Estimate  # exact (low = high) when the question was a budget
    N: Estimate
    D: Estimate
    loss: Estimate  # exact when the question was a loss
    reducible: Estimate  # loss - E
    ratio: float  # compute / largest compute of a used run
    warnings: tuple[str, ...] = ()

    @property
    def splits(self) -> bool:
        """Whether it says how to split compute between N and D. A law of compute alone does not."""
        return not math.isnan(self.N.value)

    def to_dict(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Prediction:
        return typed(cls, content)


def plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, numpy to Python, non-finite floats to what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    return value


def typed(kind: Any, value: Any) -> Any:
    """The inverse of `plain`, led by the annotations."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{key: typed(hints[key], item) for key, item in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return {key: typed(arguments[1], item) for key, item in value.items()} if arguments[1] is not Any else value
    if origin is tuple:
        inner = arguments[0] if arguments[-1] is Ellipsis else None
        return tuple(typed(inner or arguments[i], item) for i, item in enumerate(value))
    if origin in (Union, types.UnionType):
        return None if value is None else typed(next(a for a in arguments if a is not type(None)), value)
    if kind is float:
        return math.nan if value is None else float(value)
    return value
