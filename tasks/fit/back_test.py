"""The error that matters: fits to the cheaper runs, and how far they miss the dearer ones, by how far they reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reducible.tasks.fit.carrying import Columns, count_cells, on_one_line, too_few
from reducible.tasks.fit.isoflop import budgets
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Problem
from reducible.tasks.fit.result import BackTest, Run
from reducible.tasks.fit.search import solve_subsets
from reducible.tasks.words import plural, power_of_ten

MOST = 8  # levels at most
SPARE = 3  # cells beyond the parameters, so that a level's fit is more than a curve through its runs
RATIOS = (2.0, 4.0, 10.0, 100.0)  # a prediction counts for the nearest of these, in log
NEAREST = math.sqrt(2)  # below it a prediction is no extrapolation


@dataclass(frozen=True)
class Extrapolation:
    """How wrong predictions at about `ratio` times the compute of their fit were: relative errors, without sign."""

    ratio: float
    predictions: int
    levels: int
    median: float
    worst: float
    worst_run: str


def back_tests(
    form: Form, problem: Problem, columns: Columns, runs: Sequence[Run], tried: int | None = None
) -> tuple[tuple[BackTest, ...], tuple[str, ...]]:
    """Fits the runs up to each level of compute, predicts those above; and why other levels are left out.

    A level is a budget; runs without one share a level if their C differ by less than a tenth. It needs SPARE more
    cells than the form has parameters: a fit to fewer passes through its runs and may predict anything.
    tried: only so many levels are tried, evenly spread, which are then the same for every form.
    """
    # By level, not by C: runs of one budget differ a little in C, and one would predict the other.
    level_of = {run.name: level for level, group in enumerate(budgets(list(runs))) for run in group}
    at = np.array([level_of[run.name] for run in runs])
    C = np.array([run.C for run in runs])
    levels = np.unique(at)[:-1]
    if tried is not None and len(levels) > tried:
        levels = levels[np.unique(np.linspace(0, len(levels) - 1, tried).astype(int))]
    kept, refused = [], []
    for level in levels:
        known = {name: values[at <= level] for name, values in columns.items()}
        if why := _why_not(form, known):
            refused.append((C[at <= level].max(), why))
        else:
            kept.append(level)
    if tried is None and len(kept) > MOST:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, MOST).astype(int))]
    left_out = _left_out(refused)
    if not kept:
        return (), left_out
    laws = solve_subsets(problem, (np.array(kept)[:, None] >= at).astype(float))
    rows = []
    for level, theta in zip(kept, laws, strict=True):
        below = float(C[at <= level].max())
        expected = form.loss(theta, **columns)
        for i in np.flatnonzero(at > level).tolist():
            run, predicted = runs[i], float(expected[i])
            rows.append(BackTest(below, run.name, run.C, run.C / below, predicted, run.loss, predicted / run.loss - 1))
    return tuple(rows), left_out


def by_ratio(tests: Sequence[BackTest]) -> tuple[Extrapolation, ...]:
    """The median and the worst error at 2, 4, 10 and 100 times the compute of the fit, where there are any."""
    groups: dict[float, list[BackTest]] = {}
    for test in tests:
        if test.ratio >= NEAREST and math.isfinite(test.error):
            nearest = min(RATIOS, key=lambda ratio: abs(math.log(test.ratio / ratio)))
            groups.setdefault(nearest, []).append(test)
    rows = []
    for ratio, mine in sorted(groups.items()):
        sizes = [abs(test.error) for test in mine]
        worst = int(np.argmax(sizes))
        levels = len({test.below for test in mine})
        rows.append(Extrapolation(ratio, len(mine), levels, float(np.median(sizes)), sizes[worst], mine[worst].run))
    return tuple(rows)


def _why_not(form: Form, known: Columns) -> str:
    if why := too_few(form, known):
        return why
    if (cells := count_cells(known)) < form.size + SPARE:
        return f"{plural(cells, 'run')} at distinct {form.variables}, at least {form.size + SPARE} are needed"
    return "N and D vary along one line only" if form.splits and on_one_line(known) else ""


def _left_out(refused: list[tuple[float, str]]) -> tuple[str, ...]:
    """One sentence: the reason of the highest level stands for those below it, which have less still."""
    if not refused:
        return ()
    C, why = refused[-1]
    return (f"the runs up to {power_of_ten(C)} FLOPs are no back-test of their own: {why}",)
