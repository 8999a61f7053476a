"""The draws behind the intervals: the law fitted anew to cells drawn with replacement, or to errors drawn anew.

All draws are one batch of starts for the solver.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.noise import deviation
from reducible.tasks.fit.objective import Floats, Problem, minimise, solve_linear
from reducible.tasks.fit.search import Optimum

EFFICIENT = 1.345  # deviations at which Huber's estimate has 95 % of the efficiency of least squares (Huber 1981)
OWN = 10.0  # degrees of freedom at which a cell's own residual says as much of its variance as all of them
CHUNK = 200  # draws in one batch; more would not fit in the cache


def cells_of(*columns: Floats) -> NDArray[np.intp]:
    """The number of the cell of each run, such as its (N, D): replicates are resampled together."""
    return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].ravel()


def law_draws(problem: Problem, optimum: Optimum, cell: NDArray[np.intp], draws: int, seed: int) -> Floats:
    """(draws, size) raw parameters: by errors if the cells are few, otherwise by the bootstrap.

    Up to 2 (size - 1) cells a resample that carries the parameters can be little else than the sample itself: at six
    cells and five parameters every draw is the optimum, at seven its intervals cover .6.
    """
    few = int(cell.max()) + 1 <= 2 * (problem.size - 1)
    return (error_draws if few else bootstrap)(problem, optimum, cell, draws, seed)


def error_draws(problem: Problem, optimum: Optimum, cell: NDArray[np.intp], draws: int, seed: int) -> Floats:
    """(draws, size) raw parameters, each fitted to the fitted losses with errors drawn anew.

    A cell has one error, which its runs share. Its variance is its own squared residual over 1 - leverage (HC2 of
    MacKinnon and White 1985), shrunk to that of all cells, the more so the fewer degrees of freedom there are. Each
    draw divides by a chi-squared of as many, so that a linear model would get Student's intervals. Huber's delta is
    1.345 deviations: at 1e-3 the fit passes through as many runs as it has parameters, and they would have no error.
    """
    rng = np.random.default_rng(seed)
    sigma = deviation(problem.residuals(optimum.theta[None])[0], problem.size)
    wide = replace(problem, delta=max(problem.delta, EFFICIENT * sigma))
    theta = minimise(wide, optimum.theta[None], np.ones((1, wide.loss.size))).theta
    residuals = wide.residuals(theta)[0]
    of_cell = np.eye(int(cell.max()) + 1)[cell]
    count = of_cell.sum(axis=0)
    mean = residuals @ of_cell / count
    J = of_cell.T @ wide.jacobian(theta)[0][:, theta[0] > wide.bounds[0]] / np.sqrt(count)[:, None]
    leverage = np.clip((np.linalg.qr(J)[0] ** 2).sum(axis=1), 0, 1 - 1e-6)
    freedom = max(1, J.shape[0] - J.shape[1])
    pooled = float((count * mean**2).sum()) / freedom
    own = freedom / (freedom + OWN)
    variance = (own * count * mean**2 / (1 - leverage) + (1 - own) * pooled) / count
    errors = rng.normal(size=(draws, len(count))) * np.sqrt(variance)
    errors *= np.sqrt(freedom / rng.chisquare(freedom, size=draws))[:, None]
    errors = errors[:, cell]
    targets = wide.y * np.exp(residuals + errors) if wide.logarithmic else wide.y + residuals + errors
    out = []
    for chunk in np.array_split(targets, max(1, draws // CHUNK)):
        starts = np.repeat(theta, len(chunk), axis=0)
        weights = np.ones_like(chunk)
        out.append(minimise(wide, starts, weights, targets=chunk, iterations=100, tolerance=1e-6).theta)
    return wide.raw(np.concatenate(out))


def bootstrap(problem: Problem, optimum: Optimum, cell: NDArray[np.intp], draws: int, seed: int) -> Floats:
    """(draws, size) raw parameters, each fitted to cells drawn with replacement.

    A draw is a vector of run weights, so all draws share one batch. Each starts from the full data's optimum and from
    the best node of a coarse grid under its own weights. A draw that could not carry the parameters (no more
    distinct cells than parameters, or two values of a column) is drawn again.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((0, problem.loss.size))
    for _ in range(200):
        weights = np.concatenate([weights, _resampled(rng, problem, cell, draws)])
        if len(weights) >= draws:
            break
    weights = weights[:draws]
    nodes = problem.grid(6, near=True)
    out = []
    for chunk in np.array_split(weights, max(1, len(weights) // CHUNK)):
        theta, objective = solve_linear(problem, nodes, chunk)
        second = theta[np.arange(len(chunk)), objective.argmin(axis=1)]
        first = np.broadcast_to(optimum.theta, second.shape)
        rest = minimise(
            problem, np.concatenate([first, second]), np.concatenate([chunk, chunk]), iterations=100, tolerance=1e-6
        )
        better = rest.objective[len(chunk) :] < rest.objective[: len(chunk)]
        out.append(np.where(better[:, None], rest.theta[len(chunk) :], rest.theta[: len(chunk)]))
    return problem.raw(np.concatenate(out)) if out else np.zeros((0, problem.size))


def _resampled(rng: np.random.Generator, problem: Problem, cell: NDArray[np.intp], draws: int) -> Floats:
    cells = int(cell.max()) + 1
    counts = rng.multinomial(cells, np.full(cells, 1 / cells), size=draws)
    first = np.unique(cell, return_index=True)[1]
    enough = (counts > 0).sum(axis=1) >= min(problem.size + 1, cells)
    for x in problem.x:
        order = np.argsort(x[first], kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(x[first][order]) > 0])  # of each value's cells
        present = np.add.reduceat(counts[:, order], starts, axis=1) > 0
        enough &= present.sum(axis=1) >= min(3, len(starts))
    return counts[enough][:, cell].astype(float)
