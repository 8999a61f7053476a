"""The fit of a table of runs, from admission to back-test: one pure function, read from top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pandas
from numpy.typing import NDArray

from reducible.tasks.errors import UserError
from reducible.tasks.fit import isoflop
from reducible.tasks.fit.admission import admit
from reducible.tasks.fit.allocation import allocation
from reducible.tasks.fit.bootstrap import cells_of, law_draws
from reducible.tasks.fit.cost import cost_of
from reducible.tasks.fit.fit_spec import AUTO, FitOptions
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.registry import FORMS, form_named
from reducible.tasks.fit.objective import Floats, Problem
from reducible.tasks.fit.profile import deviation, profile_of_E
from reducible.tasks.fit.ranking import LEVELS, rank
from reducible.tasks.fit.repeats import UNIQUE, repeats_note
from reducible.tasks.fit.result import (
    Allocation,
    BackTest,
    Estimate,
    Fit,
    Health,
    Law,
    ProfileOfE,
    Ranking,
    Run,
    estimate,
)
from reducible.tasks.fit.search import Optimum, search, solve_subsets
from reducible.tasks.words import listed, spelled

Columns = dict[str, Floats]
SIZE_COLUMNS = ("N", "N_without_embeddings")
NOT_IDENTIFIED = "E is not identified by these runs: "
ONE_LINE = 0.2  # deviation of log D about its regression on log N below which D/N counts as not varied
OUTLIER = 6.0  # robust deviations at which a run is named
BACK_TESTS = 8  # at most so many thresholds


def fit_runs(table: pandas.DataFrame, options: FitOptions | None = None, notes: tuple[str, ...] = ()) -> Fit:
    """Fit columns N, D, C, loss (optional: name, budget, seed, status, reason, learning_rate; see admission).

    N and D may be absent or nan if the form does not read them.

    Raises UserError when a column is missing or no run is fit for use. Too few runs for a law are not an error: the
    fit then has no law, and its health says why.
    """
    started = time.perf_counter()
    options = options or FitOptions()
    ranking = None
    if options.form == AUTO:
        ranking = _ranking(table, options)
        options = options.model_copy(update={"form": ranking.chosen})
    form = form_named(options.form)
    runs = admit(table, options.counts, form.columns)
    used = [run for run in runs if run.used]
    if not used:
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in runs[:5])
        raise UserError(f"none of the {len(runs)} runs can enter the fit ({reasons})")
    N, D, C, loss = (np.array([getattr(run, key) for run in used]) for key in ("N", "D", "C", "loss"))
    columns = {key: np.array([getattr(run, key) for run in used], dtype=float) for key in form.columns}
    cost = cost_of(N, D, C)

    law, health, profile = None, _no_law(form, columns), None
    shares: Allocation | None = None
    back_tests: tuple[BackTest, ...] = ()
    if not health.verdict:
        problem = options.posed(form.problem(columns, loss, options.delta), _weights(used))
        optimum = search(problem)
        law, profile, sigma = _law(form, problem, optimum, cells_of(*columns.values()), options)
        fitted = law.loss(**columns)
        health = _health(used, columns, problem, optimum, law, profile, sigma)
        if health.splits:
            shares = allocation(form, cost, optimum.raw, law.table, float(C.min()), 10 * float(C.max()))
        back_tests = _back_tests(form, columns, problem, used)
        fits = dict(zip([run.name for run in used], fitted, strict=True))
        runs = [
            replace(run, fitted=float(fits[run.name]), residual=math.log(run.loss / fits[run.name]))
            if run.used
            else run
            for run in runs
        ]
    found = isoflop.minima(
        runs,
        window=options.window,
        draws=options.noise_draws or options.bootstrap,
        seed=options.seed,
        fallback=health.residual_deviation,
        curve=options.isoflop,
    )
    if UNIQUE not in form.columns:
        unique = [math.nan if run.unique_tokens is None else run.unique_tokens for run in used]
        notes += tuple(filter(None, [repeats_note(D, unique)]))
    if cost.worst > 0.05:
        notes += (f"FLOPs per unit are a function of N only to {100 * cost.worst:.0f} %: N* and D* share that error",)
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
        ranking=ranking,
        notes=notes,
    )


def _ranking(table: pandas.DataFrame, options: FitOptions) -> Ranking:
    """The back-test of every form whose columns the table has, on the runs that all of them can read."""
    size = "N" if options.counts == "parameters" else "N_without_embeddings"
    there = {"N" if name == size else name for name in table.columns if name == size or name not in SIZE_COLUMNS}
    readable = {name: form for name, form in FORMS.items() if set(form.columns) <= there}
    needed = tuple(dict.fromkeys(column for form in readable.values() for column in form.columns))
    used = [run for run in admit(table, options.counts, needed) if run.used]
    tests, without = {}, {}
    for name, form in FORMS.items():
        if name not in readable:
            lacking = [column for column in form.columns if column not in there]
            without[name] = f"the table has no {listed(lacking)}"
            continue
        columns = {key: np.array([getattr(run, key) for run in used], dtype=float) for key in form.columns}
        if not used or (verdict := _no_law(form, columns).verdict):
            without[name] = verdict.removeprefix(NOT_IDENTIFIED) if used else "no run has all columns"
            continue
        loss = np.array([run.loss for run in used])
        problem = options.posed(form.problem(columns, loss, options.delta), _weights(used))
        tests[name] = _back_tests(form, columns, problem, used, LEVELS)
    return rank(tests, without)


def _law(
    form: Form, problem: Problem, optimum: Optimum, cell: NDArray[np.intp], options: FitOptions
) -> tuple[Law, ProfileOfE, float]:
    cells = int(cell.max()) + 1
    draws = law_draws(problem, optimum, cell, options.bootstrap, options.seed)
    residuals = problem.residuals(optimum.theta[None])[0]
    sigma = max(deviation(residuals, problem.size), 1e-9)
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
    parameters = {name: estimate(float(optimum.raw[i]), draws[:, i]) for i, name in enumerate(form.parameters)}
    table = tuple(tuple(float(v) for v in row) for row in draws)
    return Law(form, {**parameters, "E": profile.interval}, table), profile, sigma


def _weights(used: list[Run]) -> Floats | None:
    return None if all(run.weight is None for run in used) else np.array([run.weight for run in used], dtype=float)


def _no_law(form: Form, columns: Columns) -> Health:
    """A health without a verdict if the law can be tried, otherwise with the reason why not."""
    cells = int(cells_of(*columns.values()).max()) + 1
    reason = ""
    if cells < form.size + 1:
        reason = (
            f"{cells} runs at distinct {form.variables} cannot carry {spelled(form.size)} parameters "
            f"(at least {form.size + 1}, better {3 * form.size})"
        )
    else:
        for name, values in columns.items():
            if not reason and len(np.unique(values)) < 3:
                reason = f"{len(np.unique(values))} distinct {name} cannot show how loss falls with {name} (3 at least)"
        reason = reason or form.lacks(columns)
    return Health(
        runs=len(next(iter(columns.values()))),
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
        verdict=f"{NOT_IDENTIFIED}{reason}" if reason else "",
    )


def _health(
    used: list[Run],
    columns: Columns,
    problem: Problem,
    optimum: Optimum,
    law: Law,
    profile: ProfileOfE,
    sigma: float,
) -> Health:
    residuals = -problem.residuals(optimum.theta[None])[0]  # log loss - log fitted
    largest = int(np.argmax(np.abs(residuals)))
    why_not = _why_not_identified(columns, law, profile)
    bound_hits = tuple(f"{law.form.parameters[i]} = {bound:g}" for i, bound in optimum.bound_hits)
    interval = f"[{law.E.low:.4g}, {law.E.high:.4g}]"
    verdict = f"{NOT_IDENTIFIED}{why_not}" if why_not else f"E lies in {interval}"
    return Health(
        runs=len(used),
        cells=int(cells_of(*columns.values()).max()) + 1,
        starts=optimum.starts,
        share_at_best=optimum.share_at_best,
        basins=optimum.basins,
        objective=optimum.objective,
        gradient_norm=optimum.gradient,
        condition_number=optimum.condition,
        bound_hits=bound_hits,
        residual_deviation=sigma,
        residual_largest=float(np.abs(residuals[largest])),
        residual_largest_run=used[largest].name,
        r_squared=_r_squared(problem.loss, law.loss(**columns), law.E.value),
        identified=not why_not,
        splits=law.form.splits and not _on_one_line(columns) and not _gone(law),
        verdict=verdict,
        warnings=(
            *_warnings(used, problem, optimum, bound_hits, residuals, sigma),
            *law.form.remarks(law.table, columns),
        ),
    )


def _why_not_identified(columns: Columns, law: Law, profile: ProfileOfE) -> str:
    """Empty if E is identified; otherwise the reason, and one in the design comes before one in the data."""
    if law.form.splits and _on_one_line(columns):
        ratio = np.sort(columns["D"] / columns["N"])
        span = f"D/N from {ratio[0]:.3g} to {ratio[-1]:.3g}"
        terms = listed(list(law.form.coefficients))
        return f"N and D vary along one line only ({span}), so {terms} cannot be told apart; vary D at each N"
    low, high = profile.interval.low, profile.interval.high
    if low <= 0 and math.isinf(high):
        return "the profile of E is open on both sides: any E fits them"
    if low <= 0:
        return f"E = 0 fits them within the noise (95 % interval [0, {high:.4g}])"
    if math.isinf(high):
        return f"the profile of E is open above (95 % interval from {low:.4g} up to the lowest loss)"
    return f"{gone[0]} is 0 at the optimum" if (gone := _gone(law)) else ""


def _gone(law: Law) -> list[str]:
    """Coefficients that are 0: their terms say nothing."""
    return [name for name in law.form.coefficients if law[name].value <= 0]


def _on_one_line(columns: Columns) -> bool:
    """Whether D is nearly a power of N: fixed tokens per parameter, or a single budget."""
    x, y = np.log(columns["N"]), np.log(columns["D"])
    return float((y - np.polyval(np.polyfit(x, y, 1), x)).std()) < ONE_LINE


def _r_squared(loss: Floats, fitted: Floats, E: float) -> float:
    """R^2 of the log reducible loss, over the runs whose loss is above E."""
    above = (loss > E) & (fitted > E)
    if above.sum() < 3:
        return math.nan
    actual, model = np.log(loss[above] - E), np.log(fitted[above] - E)
    return float(1 - ((actual - model) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())


def _warnings(
    used: list[Run],
    problem: Problem,
    optimum: Optimum,
    bound_hits: tuple[str, ...],
    residuals: Floats,
    sigma: float,
) -> tuple[str, ...]:
    lines = [f"the optimum lies at the bound {hit}" for hit in bound_hits]
    if optimum.share_at_best < 0.1:
        lines.append(f"only {100 * optimum.share_at_best:.0f} % of the starts reach the best optimum")
    if optimum.gradient > 1e-6:
        lines.append(f"the optimum is not at rest: relative gradient {optimum.gradient:.1g}")
    if optimum.condition > 1e4:
        lines.append(f"the parameters are hardly separable: condition number {optimum.condition:.1g}")
    # Named, never dropped: Huber's loss bounds their pull, and only the owner knows why a run went wrong.
    odd = np.flatnonzero(np.abs(residuals) > OUTLIER * max(sigma, 1e-3))
    if len(odd) and len(residuals) - len(odd) > problem.size:
        weights = np.ones(len(residuals))
        weights[odd] = 0
        without = search(problem, weights, grid=6).raw[0]
        names = ", ".join(f"{used[i].name} ({100 * residuals[i]:+.1f} %)" for i in odd)
        lines.append(f"far from the law: {names}; without them E = {without:.4g} instead of {optimum.raw[0]:.4g}")
    return tuple(lines)


def _back_tests(
    form: Form, columns: Columns, problem: Problem, used: list[Run], tried: int | None = None
) -> tuple[BackTest, ...]:
    """Fits the runs up to each level of compute and predicts those above: the error that matters.

    tried: only so many levels are tried, evenly spread, which are then the same for every form.
    """
    # By level, not by C: runs of one budget differ a little in C, and one would predict the other.
    level_of = {run.name: level for level, group in enumerate(isoflop.budgets(used)) for run in group}
    at = np.array([level_of[run.name] for run in used])
    levels = np.unique(at)[:-1]
    if tried is not None and len(levels) > tried:
        levels = levels[np.unique(np.linspace(0, len(levels) - 1, tried).astype(int))]
    kept = []
    for level in levels:
        known = {name: values[level >= at] for name, values in columns.items()}
        enough = (level >= at).sum() > form.size + 1 and not _no_law(form, known).verdict
        if enough and not (form.splits and _on_one_line(known)):
            kept.append(level)
    if tried is None and len(kept) > BACK_TESTS:
        kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, BACK_TESTS).astype(int))]
    if not kept:
        return ()
    weights = (np.array(kept)[:, None] >= at).astype(float)
    laws = solve_subsets(problem, weights)
    rows = []
    for level, theta in zip(kept, laws, strict=True):
        expected = form.loss(theta, **columns)
        below = max(run.C for run, its in zip(used, at, strict=True) if its <= level)
        for run, its, predicted in zip(used, at, map(float, expected), strict=True):
            if its > level:
                error = predicted / run.loss - 1
                rows.append(BackTest(below, run.name, run.C, run.C / below, predicted, run.loss, error))
    return tuple(rows)
