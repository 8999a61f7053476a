"""The profile of E: the lowest objective at every E, and the interval where it stays below a threshold."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import fdtri

from reducible.tasks.fit.noise import huber_scale
from reducible.tasks.fit.objective import Floats, Problem, nonnegative, race
from reducible.tasks.fit.search import Optimum


def profile_of_E(
    problem: Problem, optimum: Optimum, spread: float, sigma: float, cells: int
) -> tuple[Floats, Floats, float, float, float]:
    """The objective minimised over the rest on a grid of E: E, objective, threshold, and the interval's ends.

    The threshold turns a difference of objectives into a likelihood-ratio test for an M-estimator: with normal errors
    of deviation sigma, 2 (S(E) - S) / huber_scale is chi-squared with one degree of freedom (F with the residual's
    degrees of freedom in the denominator, as sigma is estimated).
    """
    quantile = float(fdtri(1, max(1, cells - problem.size), 0.95))
    threshold = optimum.objective + 0.5 * quantile * huber_scale(problem.delta, sigma, problem.above)

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
    nodes = np.concatenate([optimum.theta[None, 1 + problem.terms :], problem.grid(6)])
    w = np.ones((1, problem.loss.size))
    # With E given the inner problem is linear in the coefficients, on loss - E.
    starts = []
    for value in E / problem.unit:
        theta = solve_linear_given_E(problem, nodes, float(value))
        objective = problem.objective(theta, np.repeat(w, len(theta), axis=0))
        starts.append(theta[np.argsort(objective)[:3]])
    weights = np.broadcast_to(w, (len(E), w.shape[1]))
    return race(problem, np.stack(starts), weights, fixed=(0,), tolerance=1e-7).objective


def solve_linear_given_E(problem: Problem, exponents: Floats, E: float) -> Floats:
    """(G, exponents) -> scaled parameters (G, q) whose A_j >= 0 minimise the squared relative error at this E."""
    powers = problem.powers(exponents) / problem.y
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
