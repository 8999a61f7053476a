"""The law L(N, D) = E + A N^-alpha + B D^-beta: its optimum, bootstrap, profile of E and health figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf
from scipy.stats import f as f_distribution
from scipy.stats import norm

from reducible.tasks.fit.objective import (
    EXPONENTS,
    Floats,
    Problem,
    grid_of_exponents,
    minimise,
    nonnegative,
    solve_linear,
)

GRID = 12  # exponents per axis: 144 starts for the law
CLOSE = 1e-4  # a start this close to the best objective, relative, has found it
CHUNK = 200  # bootstrap draws in one batch; more falls out of the cache


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
    bound_hits: tuple[str, ...]


def problem_of_law(N: Floats, D: Floats, loss: Floats, delta: float = 1e-3) -> Problem:
    """The law's objective over runs (n,): parameters, target units, nats per unit."""
    return Problem(np.stack([N, D]).astype(float), np.asarray(loss, dtype=float), (0, 1), delta)


def search(problem: Problem, weights: Floats | None = None, grid: int = GRID) -> Optimum:
    """Variable projection from every node of the grid of exponents, each polished jointly to its own minimum."""
    w = np.ones((1, problem.loss.size)) if weights is None else weights[None, :]
    nodes = grid_of_exponents(problem.exponents, grid)
    starts = solve_linear(problem, nodes, w, rounds=5)[0][0]
    rest = minimise(problem, starts, np.repeat(w, len(starts), axis=0))
    best = int(np.argmin(rest.objective))
    # One more time with the tightest tolerance: the rest may have stopped a hair earlier.
    last = minimise(problem, rest.theta[best : best + 1], w, iterations=500, tolerance=1e-12)
    theta, objective = last.theta[0], float(last.objective[0])
    # Without noise the best objective is 1e-25 or so and nothing is within 1e-4 of it: hence the second term.
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


def polish(problem: Problem, raw_start: Floats) -> Floats:
    """The minimum below one given start, raw parameters in and out: a published single start, for comparison."""
    start = problem.scaled(np.atleast_2d(np.asarray(raw_start, dtype=float)))
    rest = minimise(problem, start, np.ones((1, problem.loss.size)), iterations=1000, tolerance=1e-12)
    return problem.raw(rest.theta[0])


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


def _bound_hits(problem: Problem, theta: Floats) -> tuple[str, ...]:
    linear, exponents = ["E", "A", "B"][: 1 + problem.terms], ["alpha", "beta"][: problem.exponents]
    hits = [f"{name} = 0" for name, value in zip(linear, theta, strict=False) if value <= 0]
    for name, value in zip(exponents, theta[1 + problem.terms :], strict=True):
        hits += [f"{name} = {bound:g}" for bound in EXPONENTS if value == bound]
    return tuple(hits)


def deviation(residuals: Floats, parameters: int) -> float:
    """Robust standard deviation of residuals (median absolute, normal-consistent).

    A fit that is close to least absolute values passes exactly through as many runs as it has parameters: those
    zeros say nothing about the noise and are left out (Street, Carroll and Ruppert 1988).
    """
    size = np.sort(np.abs(residuals))[min(parameters, len(residuals) - 1) :]
    return float(np.median(size) / norm.ppf(0.75))


def cells_of(N: Floats, D: Floats) -> NDArray[np.intp]:
    """The number of the (N, D) cell of each run: replicates are resampled together."""
    return np.unique(np.stack([N, D], axis=1), axis=0, return_inverse=True)[1].ravel()


def bootstrap(problem: Problem, optimum: Optimum, cell: NDArray[np.intp], draws: int, seed: int) -> Floats:
    """(draws, 5) raw parameters, each fitted to cells drawn with replacement.

    A draw is a vector of run weights, so all draws share one batch. Each starts from the full data's optimum and from
    the best node of a coarse grid under its own weights. A draw that could not carry the five parameters (fewer than
    six distinct cells, or two sizes or durations) is drawn again.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((0, problem.loss.size))
    for _ in range(200):
        weights = np.concatenate([weights, _resampled(rng, problem, cell, draws)])
        if len(weights) >= draws:
            break
    weights = weights[:draws]
    nodes = grid_of_exponents(problem.exponents, 6, 0.05, 1.2)
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


def solve_subsets(problem: Problem, weights: Floats) -> Floats:
    """(subsets, n) weights -> (subsets, 5) raw parameters, each from the five best nodes of its own grid."""
    theta, objective = solve_linear(problem, grid_of_exponents(problem.exponents, 8), weights, rounds=3)
    best = np.argsort(objective, axis=1)[:, :5]
    starts = np.take_along_axis(theta, best[:, :, None], axis=1).reshape(-1, problem.size)
    rest = minimise(problem, starts, np.repeat(weights, 5, axis=0))
    lowest = rest.objective.reshape(-1, 5).argmin(axis=1)
    return problem.raw(rest.theta.reshape(-1, 5, problem.size)[np.arange(len(weights)), lowest])


def _resampled(rng: np.random.Generator, problem: Problem, cell: NDArray[np.intp], draws: int) -> Floats:
    cells = int(cell.max()) + 1
    counts = rng.multinomial(cells, np.full(cells, 1 / cells), size=draws)
    first = np.unique(cell, return_index=True)[1]
    enough = (counts > 0).sum(axis=1) >= min(6, cells)
    for x in problem.x:
        level = np.unique(x[first], return_inverse=True)[1]
        present = (counts @ np.eye(level.max() + 1)[level]) > 0
        enough &= present.sum(axis=1) >= min(3, level.max() + 1)
    return counts[enough][:, cell].astype(float)


def profile_of_E(
    problem: Problem, optimum: Optimum, spread: float, sigma: float, cells: int
) -> tuple[Floats, Floats, float, float, float]:
    """The objective minimised over the rest on a grid of E: E, objective, threshold, and the interval's ends.

    The threshold turns a difference of objectives into a likelihood-ratio test for an M-estimator: with normal errors
    of deviation sigma, 2 (S(E) - S) mean(psi') / mean(psi^2) is chi-squared with one degree of freedom (F with the
    residual's degrees of freedom in the denominator, as sigma is estimated), psi being Huber's derivative.
    """
    d = problem.delta
    inside = float(erf(d / (sigma * math.sqrt(2))))
    moment = sigma**2 * (inside - 2 * d / sigma * float(norm.pdf(d / sigma))) + d * d * (1 - inside)
    quantile = float(f_distribution.ppf(0.95, 1, max(1, cells - problem.size)))
    threshold = optimum.objective + 0.5 * quantile * moment / inside

    best = float(optimum.raw[0])
    top = max(best, 0.999 * float(problem.loss.min()))
    near = best + spread * np.linspace(-3, 3, 25)
    E = np.unique(np.clip(np.r_[np.linspace(0, top, 41), near, best], 0, top))
    S = np.where(best == E, optimum.objective, _profile(problem, optimum, E))
    ends = []
    for side in (-1, 1):
        # Walk outward from the optimum to the first E above the threshold, then look closer.
        order = np.flatnonzero(best >= E)[::-1] if side < 0 else np.flatnonzero(best <= E)
        above = [i for i in order if S[i] > threshold]
        if not above:
            ends.append(0.0 if side < 0 else math.inf)
            continue
        outer = above[0]
        inner = outer - side
        for _ in range(2):
            fine = np.linspace(E[inner], E[outer], 12)
            values = _profile(problem, optimum, fine)
            E, S = _merged(E, S, fine, values)
            k = int(np.flatnonzero(np.r_[values[:-1] > threshold, True])[0])
            inner, outer = np.searchsorted(E, fine[max(k - 1, 0)]), np.searchsorted(E, fine[k])
        gap = S[outer] - S[inner]
        share = (threshold - S[inner]) / gap if gap > 0 else 1.0
        ends.append(float(E[inner] + share * (E[outer] - E[inner])))
    return E, S, threshold, ends[0], ends[1]


def _profile(problem: Problem, optimum: Optimum, E: Floats) -> Floats:
    """The lowest objective at each E: from the optimum's exponents, and from the best nodes of a coarse grid."""
    nodes = np.concatenate([optimum.theta[None, 1 + problem.terms :], grid_of_exponents(problem.exponents, 6)])
    w = np.ones((1, problem.loss.size))
    # With E given the inner problem is linear in A and B on loss - E: take it from the free solution's columns.
    starts = []
    for value in E / problem.unit:
        theta = solve_linear_given_E(problem, nodes, float(value))
        objective = problem.objective(theta, np.repeat(w, len(theta), axis=0))
        starts.append(theta[np.argsort(objective)[:4]])
    batch = np.concatenate(starts)
    rest = minimise(problem, batch, np.repeat(w, len(batch), axis=0), fixed=(0,), tolerance=1e-7)
    return rest.objective.reshape(len(E), -1).min(axis=1)


def solve_linear_given_E(problem: Problem, exponents: Floats, E: float) -> Floats:
    """(G, exponents) -> scaled parameters (G, q) whose A_j >= 0 minimise the squared relative error at this E."""
    powers = np.exp(-exponents[:, list(problem.exponent_of)][:, :, None] * problem.z) / problem.y
    target = 1 - E / problem.y
    normal = np.einsum("gan,gbn->gab", powers, powers)
    side = np.einsum("gan,n->ga", powers, target)
    theta = np.empty((len(exponents), problem.size))
    theta[:, 0] = E
    theta[:, 1 : 1 + problem.terms] = nonnegative(normal, side)
    theta[:, 1 + problem.terms :] = exponents
    return theta


def _merged(E: Floats, S: Floats, more: Floats, values: Floats) -> tuple[Floats, Floats]:
    E, S = np.r_[E, more], np.r_[S, values]
    E, first = np.unique(E, return_index=True)
    return E, S[first]
