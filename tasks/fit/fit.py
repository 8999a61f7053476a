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
from reducible.tasks.fit.back_test import back_tests
from reducible.tasks.fit.bootstrap import cells_of, law_draws
from reducible.tasks.fit.carrying import Columns, on_one_line, too_few
from reducible.tasks.fit.cost import cost_of
from reducible.tasks.fit.fit_spec import AUTO, FitOptions
from reducible.tasks.fit.health import health_of, without_law
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.registry import FORMS, form_named
from reducible.tasks.fit.noise import cell_noise, deviation
from reducible.tasks.fit.objective import Floats, Problem
from reducible.tasks.fit.profile import profile_of_E
from reducible.tasks.fit.ranking import LEVELS, rank
from reducible.tasks.fit.repeats import UNIQUE, repeats_note
from reducible.tasks.fit.result import (
    Allocation,
    BackTest,
    Estimate,
    Fit,
    Law,
    ProfileOfE,
    Ranking,
    Run,
    Variant,
    estimate,
)
from reducible.tasks.fit.search import Optimum, search
from reducible.tasks.fit.sensitivity import counted, sensitivity
from reducible.tasks.fit.verdict import Evidence, gone, verdict
from reducible.tasks.words import listed

SIZE_COLUMNS = ("N", "N_without_embeddings")


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
    cell = cells_of(*columns.values())
    if UNIQUE not in form.columns:
        unique = [math.nan if run.unique_tokens is None else run.unique_tokens for run in used]
        notes += tuple(filter(None, [repeats_note(D, unique)]))
    if cost.worst > 0.05:
        notes += (f"FLOPs per unit are a function of N only to {100 * cost.worst:.0f} %: N* and D* share that error",)

    def minima(about_law: tuple[float, float] = (math.nan, 0.0)) -> tuple[isoflop.Minima, Allocation | None]:
        draws = options.noise_draws or options.bootstrap
        found = isoflop.minima(
            runs, window=options.window, draws=draws, seed=options.seed, about_law=about_law, curve=options.isoflop
        )
        return found, isoflop.exponents(found)

    if why_not := too_few(form, columns):
        found, by_minima = minima()
        health = without_law(len(used), cell, why_not)
        law, profile, shares = None, None, None
        tests: tuple[BackTest, ...] = ()
        untested: tuple[str, ...] = ()
        variants: tuple[Variant, ...] = ()
    else:
        problem = options.posed(form.problem(columns, loss, options.delta), _weights(used))
        optimum = search(problem)
        residuals = problem.residuals(optimum.theta[None])[0]
        sigma = max(deviation(residuals, problem.size), 1e-9)
        law, profile = _law(form, problem, optimum, cell, sigma, options)
        runs = _with_residuals(runs, law.loss(**columns))
        found, by_minima = minima(cell_noise(residuals, cell, problem.size))
        splits = form.splits and not on_one_line(columns) and not gone(law)
        shares = allocation(form, cost, optimum.raw, law.table, float(C.min()), 10 * float(C.max())) if splits else None
        evidence = Evidence(columns, C, cell, problem, optimum, law, cost, sigma, shares, by_minima)
        health = health_of(used, evidence, verdict(evidence), splits)
        tests, untested = back_tests(form, problem, columns, used)
        variants = sensitivity(evidence, used)
        variants += _counted_otherwise(table, runs, form, columns, options)
    return Fit(
        runs=tuple(runs),
        counts=options.counts,
        law=law,
        cost=cost,
        health=health,
        profile=profile,
        allocation=shares,
        frontier=isoflop.frontier(found),
        isoflop=by_minima,
        back_tests=tests,
        seconds=time.perf_counter() - started,
        options=options.model_dump(),
        ranking=ranking,
        untested=untested,
        sensitivity=variants,
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
        if not used or (why_not := too_few(form, columns)):
            without[name] = why_not if used else "no run has all columns"
            continue
        loss = np.array([run.loss for run in used])
        problem = options.posed(form.problem(columns, loss, options.delta), _weights(used))
        tests[name] = back_tests(form, problem, columns, used, LEVELS)[0]
    return rank(tests, without)


def _law(
    form: Form, problem: Problem, optimum: Optimum, cell: NDArray[np.intp], sigma: float, options: FitOptions
) -> tuple[Law, ProfileOfE]:
    """The interval of E is the wider of two on each side: the profile takes the runs' noise as alike and independent,
    the bootstrap does not, but it covers too little where E is barely determined."""
    draws = law_draws(problem, optimum, cell, options.bootstrap, options.seed)
    spread = min(max(float(np.std(draws[:, 0])), 1e-4 * problem.unit), 0.3 * problem.unit)
    E, S, threshold, low, high = profile_of_E(problem, optimum, spread, sigma, int(cell.max()) + 1)
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
    parameters["E"] = Estimate(best, min(low, parameters["E"].low), max(high, parameters["E"].high))
    return Law(form, parameters, tuple(tuple(float(v) for v in row) for row in draws)), profile


def _with_residuals(runs: list[Run], fitted: Floats) -> list[Run]:
    """The used runs with what the law has for them, in their order; the others as they are."""
    of_used = iter(fitted)
    return [
        replace(run, fitted=(at := float(next(of_used))), residual=math.log(run.loss / at)) if run.used else run
        for run in runs
    ]


def _counted_otherwise(
    table: pandas.DataFrame, runs: list[Run], form: Form, columns: Columns, options: FitOptions
) -> tuple[Variant, ...]:
    """The fit with N that counts embeddings if it did not, or the other way round, if the table has both."""
    counts_all = options.counts == "parameters"
    name, label = ("N_without_embeddings", "N without embeddings") if counts_all else ("N", "N with embeddings")
    if "N" not in form.columns or name not in table.columns:
        return ()
    used = [run.used for run in runs]
    N = pandas.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)[used]
    if not (np.isfinite(N) & (N > 0)).all() or np.allclose(N, columns["N"]):
        return ()
    other = {**columns, "N": N}
    if too_few(form, other) or (form.splits and on_one_line(other)):
        return ()
    mine = [run for run in runs if run.used]
    C, loss = (np.array([getattr(run, key) for run in mine]) for key in ("C", "loss"))
    problem = options.posed(form.problem(other, loss, options.delta), _weights(mine))
    return (counted(form, problem, other, C, label),)


def _weights(used: list[Run]) -> Floats | None:
    return None if all(run.weight is None for run in used) else np.array([run.weight for run in used], dtype=float)
