"""The bootstrap: the law fitted anew to cells drawn with replacement, all draws in one batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.objective import Floats, Problem, minimise, solve_linear
from reducible.tasks.fit.search import Optimum

CHUNK = 200  # draws in one batch; more would not fit in the cache


def cells_of(*columns: Floats) -> NDArray[np.intp]:
    """The number of the cell of each run, such as its (N, D): replicates are resampled together."""
    return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].ravel()


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
        level = np.unique(x[first], return_inverse=True)[1]
        present = (counts @ np.eye(level.max() + 1)[level]) > 0
        enough &= present.sum(axis=1) >= min(3, level.max() + 1)
    return counts[enough][:, cell].astype(float)
