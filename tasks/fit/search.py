"""The best parameters of a form: variable projection from a grid of exponents, each start polished to its minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reducible.tasks.fit.objective import Floats, Problem, Rest, minimise, race, settled_by_newton, solve_linear

GRID = 12  # starts per exponent: 144 for two exponents
ENOUGH = 2000  # runs by which all starts are judged
AHEAD = 3  # of these that go on with all runs
MET = 1e-6  # relative residual below which the runs are met exactly, and rounding hides the way to rest
CLOSE = 1e-4  # a start this close to the best objective, relative, has found it


@dataclass(frozen=True)
class Optimum:
    """The best of many starts. `theta` on the solver's scale, `raw` as (E, A..., exponents)."""

    theta: Floats
    raw: Floats
    objective: float
    gradient: float
    starts: int
    share_at_best: float
    basins: int
    condition: float
    bound_hits: tuple[tuple[int, float], ...]  # number of the parameter, and the bound


def search(problem: Problem, weights: Floats | None = None, grid: int = GRID) -> Optimum:
    """Variable projection from every node of the grid of exponents, each polished jointly to its own minimum."""
    w = np.ones((1, problem.loss.size)) if weights is None else weights[None, :]
    fewer, some = problem, np.arange(problem.loss.size)
    if len(some) > ENOUGH:  # where the starts lead is seen by a part of the runs; the end is with all of them
        some = np.sort(np.random.default_rng(0).choice(some, ENOUGH, replace=False))
        fewer = problem.of_runs(some)
    starts = solve_linear(fewer, problem.grid(grid), w[:, some], rounds=5)[0][0]
    rest = minimise(fewer, starts, np.repeat(w[:, some], len(starts), axis=0))
    ahead = rest.theta[np.argsort(rest.objective)[: 1 if fewer is problem else AHEAD]]
    if fewer is not problem:
        ahead = problem.scaled(fewer.raw(ahead))
    # One more time with the tightest tolerance: the rest may have stopped a hair earlier.
    lasts = minimise(problem, ahead, np.repeat(w, len(ahead), axis=0), iterations=500, tolerance=1e-12)
    best = int(np.argmin(lasts.objective))
    last = Rest(lasts.theta[[best]], lasts.objective[[best]], lasts.gradient[[best]])
    last = settled_by_newton(problem, last, w)
    theta, objective = last.theta[0], float(last.objective[0])
    # Without noise the best objective is about 1e-25 and nothing is within 1e-4 of it, hence the second term.
    lowest = objective if fewer is problem else float(rest.objective.min())
    at_best = rest.objective <= lowest * (1 + CLOSE) + 1e-16 * w.sum()
    settled = rest.gradient < 1e-6
    J = problem.jacobian(last.theta)[0] * np.sqrt(w[0])[:, None]
    singular = np.linalg.svd(J, compute_uv=False)
    return Optimum(
        theta=theta,
        raw=problem.raw(theta),
        objective=objective,
        gradient=float(last.gradient[0]) if objective > 0.5 * MET**2 * w.sum() else 0.0,
        starts=len(starts),
        share_at_best=float(at_best.mean()),
        basins=_basins(rest.theta[settled | at_best], rest.objective[settled | at_best], problem),
        condition=float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf,
        bound_hits=_bound_hits(problem, theta),
    )


def _basins(theta: Floats, objective: Floats, problem: Problem) -> int:
    """Distinct minima: exponents apart by more than 0.02 and objectives by more than a thousandth."""
    found: list[int] = []
    for i in np.argsort(objective):
        exponents = theta[i, 1 + problem.terms :]
        known = any(
            np.abs(exponents - theta[j, 1 + problem.terms :]).max() < 0.02
            or abs(objective[i] - objective[j]) <= 1e-3 * objective[j] + 1e-16
            for j in found
        )
        if not known:
            found.append(int(i))
    return len(found)


def _bound_hits(problem: Problem, theta: Floats) -> tuple[tuple[int, float], ...]:
    low, high = problem.bounds
    raw = problem.raw(theta)
    return tuple((i, float(raw[i])) for i in range(problem.size) if theta[i] <= low[i] or theta[i] >= high[i])


def solve_subsets(problem: Problem, weights: Floats) -> Floats:
    """(subsets, n) weights -> (subsets, size) raw parameters, each from the five best nodes of its own grid."""
    theta, objective = solve_linear(problem, problem.grid(8), weights, rounds=3)
    best = np.argsort(objective, axis=1)[:, :5]
    return problem.raw(race(problem, np.take_along_axis(theta, best[:, :, None], axis=1), weights).theta)
