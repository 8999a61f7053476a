"""How far the answer depends on choices: the objective, single runs, the smallest budget, what N counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.carrying import Columns, on_one_line, too_few
from reducible.tasks.fit.cost import Cost, cost_of
from reducible.tasks.fit.isoflop import budgets
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.noise import far
from reducible.tasks.fit.objective import ABSOLUTE, Floats, Problem
from reducible.tasks.fit.result import Run, Variant
from reducible.tasks.fit.search import solve_subsets
from reducible.tasks.fit.verdict import Evidence

MOST = 5  # outliers that are left out one by one


def sensitivity(found: Evidence, runs: Sequence[Run]) -> tuple[Variant, ...]:
    """E, N* and loss at ten times the largest compute: of the fit itself, then of each other choice."""
    form, problem, cost, C = found.law.form, found.problem, found.cost, found.C
    rows = [_variant("as fitted", form, found.optimum.raw, cost, C)]
    for label, delta in (
        ("Huber, delta 0.001", 1e-3),
        ("least absolute deviations", ABSOLUTE),
        ("least squares", math.inf),
    ):
        if delta != problem.delta:
            rows.append(_variant(label, form, _solved(replace(problem, delta=delta)), cost, C))
    for label, kept in _subsets(found, runs):
        some = {name: values[kept] for name, values in found.columns.items()}
        if not too_few(form, some) and not (form.splits and on_one_line(some)):
            rows.append(_variant(label, form, _solved(problem, kept), cost, C))
    return tuple(rows)


def counted(form: Form, problem: Problem, columns: Columns, C: Floats, label: str) -> Variant:
    """The same if N counts something else."""
    cost = cost_of(columns["N"], columns["D"], C)
    return _variant(label, form, _solved(problem), cost, C)


def _solved(problem: Problem, kept: NDArray[np.bool_] | None = None) -> Floats:
    weights = np.ones(problem.loss.size) if kept is None else kept.astype(float)
    return solve_subsets(problem, weights[None])[0]


def _variant(label: str, form: Form, theta: Floats, cost: Cost, C: Floats) -> Variant:
    N = loss = math.nan
    if form.splits or form.columns == ("C",):
        with np.errstate(all="ignore"):
            N, _, loss = (float(v[0]) for v in form.optimal(theta[None], cost, 10 * float(C.max())))
    return Variant(label, float(theta[0]), N, loss)


def _subsets(found: Evidence, runs: Sequence[Run]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Which runs stay: without each that lies far from the law, and without the cheapest budget."""
    residuals = -found.problem.residuals(found.optimum.theta[None])[0]
    largest = np.argsort(-np.abs(residuals))[:MOST]
    for i in largest[far(residuals[largest], found.sigma)]:
        kept = np.ones(len(runs), dtype=bool)
        kept[i] = False
        yield f"without {runs[i].name} ({100 * residuals[i]:+.1f} %)", kept
    first = {run.name for run in budgets(list(runs))[0]}
    yield "without the smallest budget", np.array([run.name not in first for run in runs])
