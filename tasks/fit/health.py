"""What an expert asks before believing a fit, in numbers and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.noise import far
from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Health, Run
from reducible.tasks.fit.search import search
from reducible.tasks.fit.verdict import SEPARABLE, Evidence, Verdict


def health_of(used: list[Run], found: Evidence, verdict: Verdict, splits: bool) -> Health:
    """The figures of a fitted law. `splits`: whether these runs say how to split compute between N and D."""
    law, optimum, problem = found.law, found.optimum, found.problem
    residuals = -problem.residuals(optimum.theta[None])[0]  # log loss - log fitted
    largest = int(np.argmax(np.abs(residuals)))
    return Health(
        runs=len(used),
        cells=int(found.cell.max()) + 1,
        starts=optimum.starts,
        share_at_best=optimum.share_at_best,
        basins=optimum.basins,
        objective=optimum.objective,
        gradient_norm=optimum.gradient,
        condition_number=optimum.condition,
        bound_hits=tuple(f"{law.form.parameters[i]} = {bound:g}" for i, bound in optimum.bound_hits),
        residual_deviation=found.sigma,
        residual_largest=float(np.abs(residuals[largest])),
        residual_largest_run=used[largest].name,
        r_squared=_r_squared(problem.loss, law.loss(**found.columns), law.E.value),
        identified=verdict.identified,
        splits=splits,
        verdict=verdict.sentence,
        warnings=(*_warnings(used, found, residuals), *law.form.remarks(law.table, found.columns)),
        weak=verdict.weak,
        findings=verdict.findings,
        advice=verdict.advice,
    )


def without_law(runs: int, cell: NDArray[np.intp], reason: str) -> Health:
    """The health of a fit without a law, with the reason why there is none."""
    return Health(
        runs=runs,
        cells=int(cell.max()) + 1,
        starts=0,
        share_at_best=math.nan,
        basins=0,
        objective=math.nan,
        gradient_norm=math.nan,
        condition_number=math.nan,
        bound_hits=(),
        residual_deviation=math.nan,
        residual_largest=math.nan,
        residual_largest_run="",
        r_squared=math.nan,
        identified=False,
        splits=False,
        verdict=f"E is not identified by these runs: {reason}",
    )


def _r_squared(loss: Floats, fitted: Floats, E: float) -> float:
    """R^2 of the log reducible loss, over the runs whose loss is above E."""
    above = (loss > E) & (fitted > E)
    if above.sum() < 3:
        return math.nan
    actual, model = np.log(loss[above] - E), np.log(fitted[above] - E)
    return float(1 - ((actual - model) ** 2).sum() / max(float(((actual - actual.mean()) ** 2).sum()), 1e-300))


def _warnings(used: list[Run], found: Evidence, residuals: Floats) -> Iterator[str]:
    optimum = found.optimum
    for i, bound in optimum.bound_hits:
        if i <= len(found.law.form.coefficients):
            yield f"the optimum lies at the bound {found.law.form.parameters[i]} = {bound:g}"
    if optimum.share_at_best < 0.1:
        yield f"only {100 * optimum.share_at_best:.0f} % of the starts reach the best optimum"
    if optimum.gradient > 1e-6:
        yield f"the optimum is not at rest: relative gradient {optimum.gradient:.1g}"
    if optimum.condition > SEPARABLE:
        yield f"the parameters are hardly separable: condition number {optimum.condition:.1g}"
    # Named, never dropped: Huber's loss bounds their pull, and only the owner knows why a run went wrong.
    odd = np.flatnonzero(far(residuals, found.sigma))
    if len(odd) and len(residuals) - len(odd) > found.problem.size:
        weights = np.ones(len(residuals))
        weights[odd] = 0
        without = search(found.problem, weights, grid=6).raw[0]
        names = ", ".join(f"{used[i].name} ({100 * residuals[i]:+.1f} %)" for i in odd)
        yield (
            f"far from the law: {names}; without them E = {without:.4g} instead of {optimum.raw[0]:.4g}. "
            "They stay in the fit, but not in the noise of a predicted loss"
        )
