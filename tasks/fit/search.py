"""The best parameters of a form: variable projection from a grid of exponents, each start polished to its minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reducible.tasks.fit.objective import Floats, Problem, minimise, solve_linear

GRID = 12  # starts per exponent: 144 for two exponents
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
    nodes = problem.grid(grid)
    starts = solve_linear(problem, nodes, w, rounds=5)[0][0]
    rest = minimise(problem, starts, np.repeat(w, len(starts), axis=0))
    best = int(np.argmin(rest.objective))
    # One more time with the tightest tolerance: the rest may have stopped a hair earlier.
    last = minimise(problem, rest.theta[best : best + 1], w, iterations=500, tolerance=1e-12)
    theta, objective = last.theta[0], float(last.objective[0])
    # Without noise the best objective is about 1e-25 and nothing is within 1e-4 of it, hence the second term.
    at_best = rest.objective <= objective * (1 + CLOSE) + 1e-16 * w.sum()
    settled = rest.gradient < 1e-6
    J = problem.jacobian(last.theta)[0] * np.sqrt(w[0])[:, None]
    singular = np.linalg.svd(J, compute_uv=False)
    return Optimum(
        theta=theta,
        raw=problem.raw(theta),
        objective=objective,
        gradient=float(last.gradient[0]),
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
    starts = np.take_along_axis(theta, best[:, :, None], axis=1).reshape(-1, problem.size)
    rest = minimise(problem, starts, np.repeat(weights, 5, axis=0))
    lowest = rest.objective.reshape(-1, 5).argmin(axis=1)
    return problem.raw(rest.theta.reshape(-1, 5, problem.size)[np.arange(len(weights)), lowest])
