"""The fit of a table of runs, from admission to back-test: one pure function, read from top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit import isoflop
from reducible.tasks.fit.admission import admit
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.law import (
    Optimum,
    bootstrap,
    cells_of,
    deviation,
    problem_of_law,
    profile_of_E,
    search,
    solve_subsets,
)
from reducible.tasks.fit.objective import Floats, Problem
from reducible.tasks.fit.optimum import allocation, cost_of, estimate
from reducible.tasks.fit.result import Allocation, BackTest, Estimate, Fit, Health, Law, ProfileOfE, Run

PARAMETERS = 5
ONE_LINE = 0.2  # deviation of log D about its regression on log N below which D/N counts as not varied
OUTLIER = 6.0  # robust deviations at which a run is named
BACK_TESTS = 8  # at most so many thresholds


def fit_runs(table: pandas.DataFrame, options: FitOptions | None = None, notes: tuple[str, ...] = ()) -> Fit:
    """Fit columns N, D, C, loss (optional: name, budget, seed, status, reason, learning_rate; see admission).

    Raises UserError when a column is missing or no run is fit for use. Too few runs for a law are not an error: the
    fit then has no law, and its health says why.
    """
    started = time.perf_counter()
    options = options or FitOptions()
    runs = admit(table, options.counts)
    used = [run for run in runs if run.used]
    if not used:
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in runs[:5])
        raise UserError(f"none of the {len(runs)} runs can enter the fit ({reasons})")
    N, D, C, loss = (np.array([getattr(run, key) for run in used]) for key in ("N", "D", "C", "loss"))
    cost = cost_of(N, D, C)

    law, health, profile = None, _no_law(N, D), None
    shares: Allocation | None = None
    back_tests: tuple[BackTest, ...] = ()
    if not health.verdict:
        problem = problem_of_law(N, D, loss, options.delta)
        optimum = search(problem)
        law, profile, sigma = _law(problem, optimum, N, D, options)
        fitted = law.loss(N, D)
        health = _health(used, problem, optimum, law, profile, sigma)
        if health.splits:
            shares = allocation(cost, optimum.raw, np.array(law.draws), float(C.min()), 10 * float(C.max()))
        back_tests = _back_tests(problem, used)
        fits = dict(zip([run.name for run in used], fitted, strict=True))
        runs = [
            replace(run, fitted=float(fits[run.name]), residual=math.log(run.loss / fits[run.name]))
            if run.used
            else run
            for run in runs
        ]
    found = isoflop.minima(
        runs, window=options.window, draws=options.bootstrap, seed=options.seed, fallback=health.residual_deviation
    )
    if cost.worst > 0.05:
        notes += (f"FLOPs per unit are a function of N only to {100 * cost.worst:.0f} %: N* and D* inherit that",)
    return Fit(
        runs=tuple(runs),
        counts=options.counts,
        law=law,
        cost=cost,
        health=health,
        profile=profile,
        allocation=shares,
        frontier=isoflop.frontier(found),
        isoflop=isoflop.exponents(found),
        back_tests=back_tests,
        seconds=time.perf_counter() - started,
        options=options.model_dump(),
        notes=notes,
    )


def _law(
    problem: Problem, optimum: Optimum, N: Floats, D: Floats, options: FitOptions
) -> tuple[Law, ProfileOfE, float]:
    cell = cells_of(N, D)
    cells = int(cell.max()) + 1
    draws = bootstrap(problem, optimum, cell, options.bootstrap, options.seed)
    residuals = problem.residuals(optimum.theta[None])[0]
    sigma = max(deviation(residuals, PARAMETERS), 1e-9)
    spread = min(max(float(np.std(draws[:, 0])), 1e-4 * problem.unit), 0.3 * problem.unit)
    E, S, threshold, low, high = profile_of_E(problem, optimum, spread, sigma, cells)
    best = float(optimum.raw[0])
    profile = ProfileOfE(
        E=tuple(float(v) for v in E),
        objective=tuple(float(v) for v in S),
        minimum=optimum.objective,
        threshold=threshold,
        interval=Estimate(best, low, high),
        bootstrap=estimate(best, draws[:, 0]),
    )
    A, B, alpha, beta = (estimate(float(optimum.raw[i]), draws[:, i]) for i in range(1, PARAMETERS))
    table = tuple(tuple(float(v) for v in row) for row in draws)
    return Law(profile.interval, A, B, alpha, beta, table), profile, sigma  # type: ignore[arg-type]


def _no_law(N: Floats, D: Floats) -> Health:
    """A health without a verdict where the law can be tried, otherwise with the reason why not."""
    cells = int(cells_of(N, D).max()) + 1
    reason = ""
    if cells < PARAMETERS + 1:
        reason = f"{cells} runs at distinct (N, D) cannot carry five parameters (6 at the very least, better 15)"
    elif len(np.unique(N)) < 3:
        reason = f"{len(np.unique(N))} distinct N cannot show how loss falls with N (3 at least)"
    elif len(np.unique(D)) < 3:
        reason = f"{len(np.unique(D))} distinct D cannot show how loss falls with D (3 at least)"
    return Health(
        runs=len(N),
        cells=cells,
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
        verdict=f"E is not identified by these runs: {reason}" if reason else "",
    )


def _health(used: list[Run], problem: Problem, optimum: Optimum, law: Law, profile: ProfileOfE, sigma: float) -> Health:
    residuals = -problem.residuals(optimum.theta[None])[0]  # log loss - log fitted
    largest = int(np.argmax(np.abs(residuals)))
    N, D = problem.x
    why_not = _why_not_identified(N, D, law, profile)
    interval = f"[{law.E.low:.4g}, {law.E.high:.4g}]"
    verdict = f"E is not identified by these runs: {why_not}" if why_not else f"E lies in {interval}"
    return Health(
        runs=len(used),
        cells=int(cells_of(N, D).max()) + 1,
        starts=optimum.starts,
        share_at_best=optimum.share_at_best,
        basins=optimum.basins,
        objective=optimum.objective,
        gradient_norm=optimum.gradient,
        condition_number=optimum.condition,
        bound_hits=optimum.bound_hits,
        residual_deviation=sigma,
        residual_largest=float(np.abs(residuals[largest])),
        residual_largest_run=used[largest].name,
        r_squared=_r_squared(problem.loss, law.loss(N, D), law.E.value),
        identified=not why_not,
        splits=not on_one_line(N, D) and law.A.value > 0 and law.B.value > 0,
        verdict=verdict,
        warnings=_warnings(used, problem, optimum, residuals, sigma),
    )


def _why_not_identified(N: Floats, D: Floats, law: Law, profile: ProfileOfE) -> str:
    """Empty where E is identified; otherwise the reason, the design's before the data's."""
    if on_one_line(N, D):
        ratio = np.sort(D / N)
        span = f"D/N from {ratio[0]:.3g} to {ratio[-1]:.3g}"
        return f"N and D vary along one line only ({span}), so A and B cannot be told apart; vary D at each N"
    low, high = profile.interval.low, profile.interval.high
    if low <= 0 and math.isinf(high):
        return "the profile of E is open on both sides: any E fits them"
    if low <= 0:
        return f"E = 0 fits them within the noise (95 % interval [0, {high:.4g}])"
    if math.isinf(high):
        return f"the profile of E is open above (95 % interval from {low:.4g} up to the lowest loss)"
    hit = [b for b in ("A", "B") if getattr(law, b).value <= 0]
    return f"{hit[0]} is 0 at the optimum" if hit else ""


def on_one_line(N: Floats, D: Floats) -> bool:
    """Whether D is nearly a power of N: fixed tokens per parameter, or a single budget."""
    x, y = np.log(N), np.log(D)
    return float((y - np.polyval(np.polyfit(x, y, 1), x)).std()) < ONE_LINE


def _r_squared(loss: Floats, fitted: Floats, E: float) -> float:
    """Of log reducible loss, over the runs whose loss is above E."""
    above = (loss > E) & (fitted > E)
    if above.sum() < 3:
        return math.nan
    actual, model = np.log(loss[above] - E), np.log(fitted[above] - E)
    return float(1 - ((actual - model) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())


def _warnings(used: list[Run], problem: Problem, optimum: Optimum, residuals: Floats, sigma: float) -> tuple[str, ...]:
    lines = [f"the optimum lies at the bound {hit}" for hit in optimum.bound_hits]
    if optimum.share_at_best < 0.1:
        lines.append(f"only {100 * optimum.share_at_best:.0f} % of the starts reach the best optimum")
    if optimum.gradient > 1e-6:
        lines.append(f"the optimum is not at rest: relative gradient {optimum.gradient:.1g}")
    if optimum.condition > 1e4:
        lines.append(f"the parameters are hardly separable: condition number {optimum.condition:.1g}")
    # Named, never dropped: Huber's loss bounds their pull, and the owner knows why a run went wrong.
    odd = np.flatnonzero(np.abs(residuals) > OUTLIER * max(sigma, 1e-3))
    if len(odd) and len(residuals) - len(odd) > PARAMETERS:
        weights = np.ones(len(residuals))
        weights[odd] = 0
        without = search(problem, weights, grid=6).raw[0]
        names = ", ".join(f"{used[i].name} ({100 * residuals[i]:+.1f} %)" for i in odd)
        lines.append(f"far from the law: {names}; without them E = {without:.4g} instead of {optimum.raw[0]:.4g}")
    return tuple(lines)


def _back_tests(problem: Problem, used: list[Run]) -> tuple[BackTest, ...]:
    """Fit the runs up to each compute level, predict those above: the error that matters."""
    # Levels and not C itself: runs of one budget differ in C by a little, and would vouch for each other.
    level_of = {run.name: level for level, group in enumerate(isoflop.budgets(used)) for run in group}
    at = np.array([level_of[run.name] for run in used])
    levels = np.unique(at)[:-1]
    kept = []
    for level in levels:
        below = level >= at
        N, D = problem.x[:, below]
        if not _no_law(N, D).verdict and below.sum() > PARAMETERS + 1 and not on_one_line(N, D):
            kept.append(level)
    if len(kept) > BACK_TESTS:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, BACK_TESTS).astype(int))]
    if not kept:
        return ()
    weights = (np.array(kept)[:, None] >= at).astype(float)
    laws = solve_subsets(problem, weights)
    rows = []
    for level, (E, A, B, alpha, beta) in zip(kept, laws, strict=True):
        below = max(run.C for run, its in zip(used, at, strict=True) if its <= level)
        for run, its in zip(used, at, strict=True):
            if its > level:
                predicted = float(E + A * run.N**-alpha + B * run.D**-beta)
                error = predicted / run.loss - 1
                rows.append(BackTest(below, run.name, run.C, run.C / below, predicted, run.loss, error))
    return tuple(rows)
