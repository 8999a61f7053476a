"""The best learning rates that a sweep's own searches found: which lie at the edge of their grid, and a small law.

The law is rate = scale N^a D^b by least squares in logarithms, with Student's intervals. A search at the edge of its
grid says only that the best rate lies beyond, so it is left out; if many do, what is left is biased and gives no law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from reducible.tasks.fit.result import Estimate, Floats, plain, typed
from reducible.tasks.words import listed, plural

FILE = "learning_rates.json"
SPARE = 3  # searches more than the law has parameters
DISTINCT = 3  # values of N or D that a power of it needs
WIDE = 2.0  # the factor that they must span
ONE_LINE = 0.2  # deviation of log D about its regression on log N below which their powers cannot be told apart
TOO_MANY = 0.25  # share of searches at an edge above which there is no law


@dataclass(frozen=True)
class Search:
    """What one cell's search found."""

    label: str
    N: float
    D: float  # of the whole cell
    batch: int
    rate: float  # the best of the grid
    best: float  # the lowest point of the parabola through it and its neighbours
    edge: str  # "low" or "high" if the best is the first or last rate; else ""
    step: float  # between two rates of the grid, in log rate


@dataclass(frozen=True)
class RateLaw:
    """The best rate (at the width where the recipe states it) as a product of powers."""

    variables: tuple[str, ...]
    exponents: dict[str, Estimate]
    coefficients: tuple[float, ...]  # of 1 and log(variable / centre)
    centre: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    freedom: int

    def at(self, N: float, D: float) -> Estimate:
        """The best rate for a model of N parameters trained on D units, with the law's uncertainty."""
        given = {"N": N, "D": D}
        row = np.array([1.0, *(math.log(given[v] / c) for v, c in zip(self.variables, self.centre, strict=True))])
        middle = float(row @ np.array(self.coefficients))
        wide = float(student.ppf(0.975, self.freedom)) * math.sqrt(float(row @ np.array(self.covariance) @ row))
        return Estimate(math.exp(middle), math.exp(middle - wide), math.exp(middle + wide))


@dataclass(frozen=True)
class LearningRates:
    """All searches of a sweep; `law`, or the reason why there is none."""

    searches: tuple[Search, ...]
    law: RateLaw | None
    reason: str

    @property
    def at_edge(self) -> tuple[Search, ...]:
        return tuple(search for search in self.searches if search.edge)

    @property
    def edge_sentence(self) -> str:
        """Which searches ended at an edge, and what to widen; empty if none did."""
        parts = []
        for edge, what in (("low", "lowest"), ("high", "highest")):
            there = [search.label for search in self.searches if search.edge == edge]
            if there:
                many = plural(len(there), "search", "searches")
                parts.append(
                    f"the best learning rate is the {what} that was tried in {many} of {len(self.searches)} "
                    f"({listed(there, 4)}): sweep.learning_rate.{edge} must be {'lower' if edge == 'low' else 'higher'}"
                )
        return "; ".join(parts)

    @property
    def law_sentence(self) -> str:
        if self.law is None:
            return f"no law of the best learning rate: {self.reason}"
        powers = " ".join(f"{name}^{exponent}" for name, exponent in self.law.exponents.items())
        inside = plural(len(self.searches) - len(self.at_edge), "search", "searches")
        return f"best learning rate ~ {powers}, from {inside}"

    @property
    def batch_sentence(self) -> str:
        return "no law of the best batch: each cell has one batch, and the searches try no other"

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(text for text in (self.edge_sentence, self.law_sentence, self.batch_sentence) if text)

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        return content

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> LearningRates | None:
        """What a fit's folder holds; None if its sweep searched no rates."""
        path = folder / FILE
        if not path.is_file():
            return None
        found: LearningRates = typed(cls, json.loads(path.read_text()))
        return found


def search_of(label: str, N: float, D: float, batch: int, result: Mapping[str, Any]) -> Search:
    """result: the result.json of a search."""
    trials = [(math.log(rate), math.inf if loss is None else float(loss)) for rate, loss in result["trials"]]
    x, y = (np.array(column) for column in zip(*trials, strict=True))
    at = int(np.argmin(y))
    edge = "low" if at == 0 else "high" if at == len(x) - 1 else ""
    best = x[at]
    if not edge and np.isfinite(y[at - 1 : at + 2]).all():
        a, b, _ = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
        best = x[at] - (b / (2 * a) if a > 0 else 0.0)
    step = float(np.diff(x).mean()) if len(x) > 1 else math.inf
    return Search(label, N, D, batch, float(result["learning_rate"]), float(math.exp(best)), edge, step)


def learning_rates(searches: Sequence[Search]) -> LearningRates:
    inside = [search for search in searches if not search.edge]
    gone = len(searches) - len(inside)
    if gone > TOO_MANY * len(searches):
        reason = f"{gone} of {plural(len(searches), 'search', 'searches')} ended at the edge of the grid"
        return LearningRates(tuple(searches), None, reason)
    variables = _variables(inside)
    needed = 1 + max(1, len(variables)) + SPARE
    if len(inside) < needed:
        what = plural(len(inside), "search", "searches")
        reason = f"{what} inside the grid, and at least {needed} are needed"
        return LearningRates(tuple(searches), None, reason)
    if not variables:
        reason = f"neither N nor D has {DISTINCT} values over a factor of {WIDE:g}"
        return LearningRates(tuple(searches), None, reason)
    return LearningRates(tuple(searches), _law(inside, variables), "")


def _variables(searches: Sequence[Search]) -> tuple[str, ...]:
    """N, D or both: those that vary, and D only if not along one line with N."""
    logs = {name: np.log([getattr(search, name) for search in searches]) for name in ("N", "D")}
    vary = tuple(name for name, x in logs.items() if len(np.unique(x)) >= DISTINCT and np.ptp(x) >= math.log(WIDE))
    if len(vary) < 2:
        return vary
    x, y = logs["N"], logs["D"]
    apart = float((y - np.polyval(np.polyfit(x, y, 1), x)).std())
    return vary if apart >= ONE_LINE else ("N",)


def _law(searches: Sequence[Search], variables: tuple[str, ...]) -> RateLaw:
    logs = [np.log([getattr(search, name) for search in searches]) for name in variables]
    centre = [float(x.mean()) for x in logs]
    X = np.stack([np.ones(len(searches)), *(x - c for x, c in zip(logs, centre, strict=True))], axis=1)
    y: Floats = np.log([search.best for search in searches])
    coefficients, *_ = np.linalg.lstsq(X, y, rcond=None)
    freedom = len(y) - X.shape[1]
    # A best rate is not known better than its grid: rounding to a step has a deviation of step / sqrt(12).
    rounding = float(np.mean([search.step for search in searches])) ** 2 / 12
    variance = max(float(((y - X @ coefficients) ** 2).sum()) / freedom, rounding)
    covariance = variance * np.linalg.inv(X.T @ X)
    wide = float(student.ppf(0.975, freedom)) * np.sqrt(np.diag(covariance))
    exponents = {
        name: Estimate(float(c), float(c - w), float(c + w))
        for name, c, w in zip(variables, coefficients[1:], wide[1:], strict=True)
    }
    return RateLaw(
        variables=variables,
        exponents=exponents,
        coefficients=tuple(float(c) for c in coefficients),
        centre=tuple(math.exp(c) for c in centre),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance),
        freedom=freedom,
    )
