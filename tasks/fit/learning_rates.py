"""The best learning rates and batches of a sweep's own searches: which lie at the edge of their grid, and a small law.

The law is rate (or batch) = scale N^a D^b by least squares in logarithms, with Student's intervals. A search at the
edge of its grid says only that the best lies beyond, so it is left out; if many do, what is left is biased and gives no
law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from reducible.tasks.fit.carrying import on_one_line
from reducible.tasks.fit.result import Estimate, Floats, plain, typed
from reducible.tasks.words import listed, plural

FILE = "learning_rates.json"
SPARE = 3  # searches more than the law has parameters
DISTINCT = 3  # values of N or D that a power of it needs
WIDE = 2.0  # the factor that they must span
TOO_MANY = 0.25  # share of searches at an edge above which there is no law


@dataclass(frozen=True)
class Best:
    """The best of a grid of positive values."""

    tried: float  # the best that was tried
    between: float  # the lowest point of the parabola through it and its neighbours, in the logarithm
    edge: str  # "low" or "high" if the best is the first or the last; else ""
    step: float  # between two values of the grid, in the logarithm


@dataclass(frozen=True)
class Search:
    """What one cell's search found."""

    label: str
    N: float
    D: float  # of the whole cell
    batch: int  # of the cell
    rate: Best  # at the cell's batch
    best_batch: Best | None = None  # each batch at its own best rate; None if no other was tried


@dataclass(frozen=True)
class PowerLaw:
    """A best value as a product of powers; a rate is meant at the width where the recipe states it."""

    variables: tuple[str, ...]
    exponents: dict[str, Estimate]
    coefficients: tuple[float, ...]  # of 1 and log(variable / centre)
    centre: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    freedom: int

    def at(self, N: float, D: float) -> Estimate:
        """The best value for a model of N parameters trained on D units, with the law's uncertainty."""
        given = {"N": N, "D": D}
        row = np.array([1.0, *(math.log(given[v] / c) for v, c in zip(self.variables, self.centre, strict=True))])
        middle = float(row @ np.array(self.coefficients))
        wide = float(stdtrit(self.freedom, 0.975)) * math.sqrt(float(row @ np.array(self.covariance) @ row))
        return Estimate(math.exp(middle), math.exp(middle - wide), math.exp(middle + wide))

    def __str__(self) -> str:
        return " ".join(f"{name}^{exponent}" for name, exponent in self.exponents.items())


@dataclass(frozen=True)
class LearningRates:
    """All searches of a sweep; each law, or the reason why there is none."""

    searches: tuple[Search, ...]
    law: PowerLaw | None
    reason: str
    batch_law: PowerLaw | None
    batch_reason: str

    @property
    def at_edge(self) -> tuple[Search, ...]:
        """Those whose best rate lies at the edge."""
        return tuple(search for search in self.searches if search.rate.edge)

    @property
    def edge_sentence(self) -> str:
        """Which searches ended at an edge, and what to widen; empty if none did."""
        rates = [(search.label, search.rate) for search in self.searches]
        batches = [(search.label, search.best_batch) for search in self.searches if search.best_batch]
        said = [
            _edge("learning rate", rates, "low", "lowest", "sweep.learning_rate.low must be lower"),
            _edge("learning rate", rates, "high", "highest", "sweep.learning_rate.high must be higher"),
            _edge("batch", batches, "low", "smallest", "sweep.learning_rate.batches must go lower"),
            _edge("batch", batches, "high", "largest", "sweep.learning_rate.batches must go higher"),
        ]
        return "; ".join(filter(None, said))

    @property
    def law_sentence(self) -> str:
        if self.law is None:
            return f"no law of the best learning rate: {self.reason}"
        inside = plural(len(self.searches) - len(self.at_edge), "search", "searches")
        return f"best learning rate ~ {self.law}, from {inside}"

    @property
    def batch_sentence(self) -> str:
        if self.batch_law is None:
            return f"no law of the best batch: {self.batch_reason}"
        return f"best batch ~ {self.batch_law}"

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


def _edge(what: str, found: Sequence[tuple[str, Best]], edge: str, most: str, remedy: str) -> str:
    there = [label for label, best in found if best.edge == edge]
    if not there:
        return ""
    many = plural(len(there), "search", "searches")
    return f"the best {what} is the {most} that was tried in {many} of {len(found)} ({listed(there, 4)}): {remedy}"


def search_of(label: str, N: float, D: float, batch: int, result: Mapping[str, Any]) -> Search:
    """result: the result.json of a search."""
    rate = _best(result["trials"])[0]
    others = result.get("batches") or []
    lowest = [(batch, _best(result["trials"])[1]), *((size, _best(trials)[1]) for size, trials in others)]
    return Search(label, N, D, batch, rate, _best(sorted(lowest))[0] if others else None)


def _best(trials: Sequence[Sequence[Any]]) -> tuple[Best, float]:
    """The best of [value, loss or None] in rising order of values, and the loss there, by the parabola."""
    x = np.log([value for value, _ in trials])
    y = np.array([math.inf if loss is None else float(loss) for _, loss in trials])
    at = int(np.argmin(y))
    edge = "low" if at == 0 else "high" if at == len(x) - 1 else ""
    between, lowest = x[at], y[at]
    if not edge and np.isfinite(y[at - 1 : at + 2]).all():
        a, b, c = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
        if a > 0:
            between, lowest = x[at] - b / (2 * a), c - b * b / (4 * a)
    step = float(np.diff(x).mean()) if len(x) > 1 else math.inf
    return Best(float(trials[at][0]), float(math.exp(between)), edge, step), float(lowest)


def learning_rates(searches: Sequence[Search]) -> LearningRates:
    law, reason = _law_of(searches, [search.rate for search in searches])
    batched = [search for search in searches if search.best_batch]
    batch_law, batch_reason = None, "each cell has one batch, and the searches try no other"
    if batched:
        batch_law, batch_reason = _law_of(batched, [search.best_batch for search in batched if search.best_batch])
    return LearningRates(tuple(searches), law, reason, batch_law, batch_reason)


def _law_of(searches: Sequence[Search], bests: Sequence[Best]) -> tuple[PowerLaw | None, str]:
    """The law of the best values, or the reason why there is none."""
    inside = [pair for pair in zip(searches, bests, strict=True) if not pair[1].edge]
    gone = len(searches) - len(inside)
    if gone > TOO_MANY * len(searches):
        return None, f"{gone} of {plural(len(searches), 'search', 'searches')} ended at the edge of the grid"
    variables = _variables([search for search, _ in inside])
    needed = 1 + max(1, len(variables)) + SPARE
    if len(inside) < needed:
        return None, f"{plural(len(inside), 'search', 'searches')} inside the grid, and at least {needed} are needed"
    if not variables:
        return None, f"neither N nor D has {DISTINCT} values over a factor of {WIDE:g}"
    return _law([search for search, _ in inside], [best for _, best in inside], variables), ""


def _variables(searches: Sequence[Search]) -> tuple[str, ...]:
    """N, D or both: those that vary, and D only if not along one line with N."""
    logs = {name: np.log([getattr(search, name) for search in searches]) for name in ("N", "D")}
    vary = tuple(name for name, x in logs.items() if len(np.unique(x)) >= DISTINCT and np.ptp(x) >= math.log(WIDE))
    if len(vary) < 2:
        return vary
    return ("N",) if on_one_line({name: np.exp(x) for name, x in logs.items()}) else vary


def _law(searches: Sequence[Search], bests: Sequence[Best], variables: tuple[str, ...]) -> PowerLaw:
    logs = [np.log([getattr(search, name) for search in searches]) for name in variables]
    centre = [float(x.mean()) for x in logs]
    X = np.stack([np.ones(len(searches)), *(x - c for x, c in zip(logs, centre, strict=True))], axis=1)
    y: Floats = np.log([best.between for best in bests])
    coefficients, *_ = np.linalg.lstsq(X, y, rcond=None)
    freedom = len(y) - X.shape[1]
    # A best value is not known better than its grid: rounding to a step has a deviation of step / sqrt(12).
    rounding = float(np.mean([best.step for best in bests])) ** 2 / 12
    variance = max(float(((y - X @ coefficients) ** 2).sum()) / freedom, rounding)
    covariance = variance * np.linalg.inv(X.T @ X)
    wide = float(stdtrit(freedom, 0.975)) * np.sqrt(np.diag(covariance))
    exponents = {
        name: Estimate(float(c), float(c - w), float(c + w))
        for name, c, w in zip(variables, coefficients[1:], wide[1:], strict=True)
    }
    return PowerLaw(
        variables=variables,
        exponents=exponents,
        coefficients=tuple(float(c) for c in coefficients),
        centre=tuple(math.exp(c) for c in centre),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance),
        freedom=freedom,
    )
