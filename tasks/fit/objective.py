"""The objective of every fit, and a batched Newton solver that brings many starts or bootstrap draws to rest at once.

The model is a sum of powers, loss = E + sum_j A_j x_j^-e_t(j): Chinchilla's law has x = (N, D) with two exponents, and
Gadre et al.'s form is x = (C/M, C M) with one exponent shared by both terms. A form whose terms are not powers extends
Problem by its own `powers`, `slopes` and `bend`, and by `scaled` and `raw`.

The objective is the SUM over runs of weight * Huber(log model - log loss) with delta 1e-3 (Hoffmann et al. 2022).
It is summed, not averaged, because a mean of 1e-5 meets a default tolerance long before the optimum. With delta
infinite it is least squares, with delta far below the noise least absolute values. Runs may weigh differently, and
those above the law less than those below: a run that is not tuned well can only be too high (asymmetric least squares:
Aigner, Amemiya and Poirier 1976, who estimate production frontiers by it; Newey and Powell 1987).

Inside, A_j is replaced by its term at the geometric mean of x_j, in units of the mean loss, as E is: all parameters
are then of order one and the Jacobian's condition number is about 1e2 where the raw parameters give 1e9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Parts = tuple[Floats, Floats]
LAP = 8  # steps after which a start that is behind is given up
CACHED = 50_000  # runs times starts that are brought to rest together; their arrays stay in a processor's cache
GONE = 1e-7  # of the mean loss: a coefficient that is smaller, and would get smaller still, stands at 0
ABSOLUTE = 1e-6  # Huber's delta that stands for least absolute values: below all noise, and smooth enough to solve
EXACT = 1e-9  # relative residual below which runs count as met


@dataclass(frozen=True)
class Range:
    """The range of one exponent: its bounds, the spread of starts, and that of the few starts of a bootstrap draw."""

    bounds: tuple[float, float] = (0.01, 4.0)  # a hit is reported
    starts: tuple[float, float] = (0.02, 2.0)
    near: tuple[float, float] = (0.05, 1.2)


@dataclass(frozen=True)
class Problem:
    """Runs to fit: `x` (terms, n) and `loss` (n), all positive; term j uses exponent number `exponent_of[j]`."""

    x: Floats
    loss: Floats
    exponent_of: tuple[int, ...]
    delta: float = 1e-3
    logarithmic: bool = True  # False: residuals of the loss itself, in units of the mean loss
    given_ranges: tuple[Range, ...] = ()  # of each exponent; the default if empty
    above: float = 1.0  # factor of the penalty of runs whose loss is above the law
    weight: Floats | None = None  # (n,) of each run, beside the weights of a draw

    @property
    def terms(self) -> int:
        return len(self.exponent_of)

    @property
    def exponents(self) -> int:
        return max(self.exponent_of) + 1

    @property
    def size(self) -> int:
        """Parameters: E, one coefficient a term, the exponents."""
        return 1 + self.terms + self.exponents

    @property
    def ranges(self) -> tuple[Range, ...]:
        return self.given_ranges or (Range(),) * self.exponents

    @cached_property
    def unit(self) -> float:
        return float(np.exp(np.log(self.loss).mean()))

    @cached_property
    def centre(self) -> Floats:
        return np.exp(np.log(self.x).mean(axis=1))

    @cached_property
    def z(self) -> Floats:
        return np.log(self.x / self.centre[:, None])

    @cached_property
    def y(self) -> Floats:
        return self.loss / self.unit

    def scaled(self, raw: Floats) -> Floats:
        """(..., size) parameters (E, A_j, exponents) to the solver's scale."""
        theta = np.array(raw, dtype=float)
        theta[..., 0] /= self.unit
        for j, t in enumerate(self.exponent_of):
            theta[..., 1 + j] *= self.centre[j] ** -theta[..., 1 + self.terms + t] / self.unit
        return theta

    def raw(self, theta: Floats) -> Floats:
        """The inverse of `scaled`."""
        raw = np.array(theta, dtype=float)
        raw[..., 0] *= self.unit
        for j, t in enumerate(self.exponent_of):
            raw[..., 1 + j] *= self.centre[j] ** raw[..., 1 + self.terms + t] * self.unit
        return raw

    def of_runs(self, rows: NDArray[np.intp]) -> Problem:
        """The same with these runs alone. Its scale is its own: `raw` and `scaled` lead from one to the other."""
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, x=self.x[:, rows], loss=self.loss[rows], weight=weight)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        linear = 1 + self.terms
        low, high = np.array([of.bounds for of in self.ranges]).T
        return np.r_[np.zeros(linear), low], np.r_[np.full(linear, np.inf), high]

    def grid(self, points: int, near: bool = False) -> Floats:
        """All combinations of `points` of each exponent, evenly spaced in the logarithm: (nodes, exponents)."""
        axes = [np.geomspace(*(of.near if near else of.starts), points) for of in self.ranges]
        return all_of(axes)

    def residuals(self, theta: Floats, targets: Floats | None = None) -> Floats:
        """(P, size) -> (P, n): log model - log loss (or model - loss). targets: (P, n) losses in place of the runs'."""
        return self._residuals(self.parts(theta)[0], targets)

    def _residuals(self, model: Floats, targets: Floats | None) -> Floats:
        y = self.y if targets is None else targets
        return np.log(model / y) if self.logarithmic else model - y

    def objective(self, theta: Floats, weights: Floats, targets: Floats | None = None) -> Floats:
        """(P, size), (P, n) -> (P,): the sum of weighted Huber terms."""
        return self.objective_of(self.parts(theta)[0], weights, targets)

    def objective_of(self, model: Floats, weights: Floats, targets: Floats | None = None) -> Floats:
        """The same of a model (P, n) that is known."""
        r = self._residuals(model, targets)
        return np.einsum("pn,pn->p", self.weighed(weights, r), huber(r, self.delta))

    def weighed(self, weights: Floats, r: Floats) -> Floats:
        """Weights of draws with those of the runs and of their side of the law; a negative residual is a loss above."""
        if self.weight is not None:
            weights = weights * self.weight
        return weights if self.above == 1 else weights * np.where(r < 0, self.above, 1.0)

    def jacobian(self, theta: Floats) -> Floats:
        """(P, size) -> (P, n, size): derivatives of the residuals."""
        model, powers = self.parts(theta)
        J = self.slopes(theta, powers)
        return J / model[:, :, None] if self.logarithmic else J

    def powers(self, exponents: Floats) -> Floats:
        """(P, exponents) -> what each coefficient multiplies, exp(-e z): (P, terms, n)."""
        return np.exp(-exponents[:, list(self.exponent_of)][:, :, None] * self.z)

    def parts(self, theta: Floats) -> Parts:
        """The model (P, n) and the powers (P, terms, n)."""
        powers = self.powers(theta[:, 1 + self.terms :])
        model = theta[:, :1] + np.einsum("pj,pjn->pn", theta[:, 1 : 1 + self.terms], powers)
        return np.maximum(model, 1e-12), powers  # E = A = 0 would take the logarithm of 0

    def slopes(self, theta: Floats, powers: Floats) -> Floats:
        """Derivatives of the model: (P, n, size)."""
        J = np.zeros((len(theta), self.z.shape[1], self.size))
        J[:, :, 0] = 1
        for j, t in enumerate(self.exponent_of):
            J[:, :, 1 + j] = powers[:, j]
            J[:, :, 1 + self.terms + t] -= theta[:, 1 + j, None] * self.z[j] * powers[:, j]
        return J

    def expansion(
        self, theta: Floats, weights: Floats, targets: Floats | None = None, parts: Parts | None = None
    ) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Objective (P,), gradient (P, q), what the gradient would be if nothing cancelled (P,), the exact
        Hessian (P, q, q), and the Hessian of the quadratic that lies above the objective (P, q, q)."""
        model, powers = self.parts(theta) if parts is None else parts
        J, r = self.slopes(theta, powers), self._residuals(model, targets)
        bend = 1 / model if self.logarithmic else np.ones_like(model)
        if self.logarithmic:
            J = J * bend[:, :, None]
        weights = self.weighed(weights, r)
        pull = weights * np.clip(r, -self.delta, self.delta)  # Huber's derivative
        inside = np.abs(r) <= self.delta
        gradient = np.einsum("pn,pnq->pq", pull, J)
        uncancelled = np.linalg.norm(np.einsum("pn,pnq->pq", np.abs(pull), np.abs(J)), axis=1)
        above = _gram(J, weights * np.minimum(1, self.delta / np.maximum(np.abs(r), 1e-300)))
        hessian = _gram(J, weights * inside - (pull if self.logarithmic else 0))
        self.bend(theta, powers, pull * bend, hessian)
        value = np.einsum("pn,pn->p", weights, huber(r, self.delta))
        return value, gradient, uncancelled, hessian, above

    def bend(self, theta: Floats, powers: Floats, pull: Floats, hessian: Floats) -> None:
        """Adds the model's second derivatives, weighted by `pull` (P, n), to `hessian` (P, q, q) in place."""
        for j, t in enumerate(self.exponent_of):
            a, e = 1 + j, 1 + self.terms + t
            mixed = -np.einsum("pn,n,pn->p", pull, self.z[j], powers[:, j])
            hessian[:, a, e] += mixed
            hessian[:, e, a] += mixed
            hessian[:, e, e] += theta[:, a] * np.einsum("pn,n,pn->p", pull, self.z[j] ** 2, powers[:, j])


def all_of(axes: Sequence[Floats]) -> Floats:
    """Every combination of one value of each axis: (combinations, axes)."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def huber(r: Floats, delta: float) -> Floats:
    """r^2 / 2 inside delta, delta (|r| - delta / 2) outside."""
    if delta == np.inf:
        return 0.5 * r * r
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def _gram(J: Floats, weights: Floats) -> Floats:
    return np.matmul((J * weights[:, :, None]).transpose(0, 2, 1), J)


@dataclass(frozen=True)
class Rest:
    """Where a batch came to rest: scaled parameters (P, q), objective (P,), relative projected gradient (P,)."""

    theta: Floats
    objective: Floats
    gradient: Floats


def minimise(
    problem: Problem,
    starts: Floats,
    weights: Floats,
    *,
    targets: Floats | None = None,
    fixed: tuple[int, ...] = (),
    iterations: int = 300,
    tolerance: float = 1e-9,
) -> Rest:
    """Brings each of P starts (P, q), with its own run weights (P, n), to the nearest minimum within the bounds.

    Damped Newton: (Hessian + damping * Hessian-above) step = -gradient. With damping 1 or more every step descends
    (the second matrix is the one of iteratively reweighted least squares); with damping 0 it is Newton's own. A
    parameter at its bound stays there while the gradient pushes outward, and a coefficient that is all but 0 counts
    as at its bound: a step that would take it below 0 is none for the others (Bertsekas 1982). `fixed` parameters
    never move (profiles). `targets` (P, n): losses of each start's own, on the solver's scale.
    """
    rests = [
        _minimise(
            problem,
            starts[rows],
            weights[rows],
            targets if targets is None else targets[rows],
            fixed,
            iterations,
            tolerance,
        )
        for rows in _blocks(len(starts), problem.loss.size)
    ]
    return Rest(*(np.concatenate([getattr(rest, of) for rest in rests]) for of in ("theta", "objective", "gradient")))


def race(
    problem: Problem,
    starts: Floats,
    weights: Floats,
    *,
    fixed: tuple[int, ...] = (),
    iterations: int = 300,
    tolerance: float = 1e-9,
) -> Rest:
    """The lowest minimum that each of R rows of starts (R, K, q), with its run weights (R, n), leads to: (R, q), (R,).

    All starts take the first steps, and the two that are ahead then go to the end: which of them wins is seen early.
    """
    rows, many, size = starts.shape
    lap = minimise(
        problem,
        starts.reshape(-1, size),
        np.repeat(weights, many, axis=0),
        fixed=fixed,
        iterations=LAP,
        tolerance=tolerance,
    )
    ahead = np.argsort(lap.objective.reshape(rows, many), axis=1)[:, :2]
    left = np.take_along_axis(lap.theta.reshape(starts.shape), ahead[:, :, None], axis=1)
    rest = minimise(
        problem,
        left.reshape(-1, size),
        np.repeat(weights, left.shape[1], axis=0),
        fixed=fixed,
        iterations=iterations,
        tolerance=tolerance,
    )
    best = np.arange(rows) * left.shape[1] + rest.objective.reshape(rows, -1).argmin(axis=1)
    return Rest(rest.theta[best], rest.objective[best], rest.gradient[best])


def _blocks(starts: int, runs: int) -> list[NDArray[np.intp]]:
    """The numbers of the starts in pieces of about CACHED starts times runs."""
    return np.array_split(np.arange(starts), max(1, min(starts, -(-starts * runs // CACHED))))


def _minimise(
    problem: Problem,
    starts: Floats,
    weights: Floats,
    targets: Floats | None,
    fixed: tuple[int, ...],
    iterations: int,
    tolerance: float,
) -> Rest:
    low, high = problem.bounds
    nearly = low + np.where(np.arange(problem.size) <= problem.terms, GONE, 0)
    movable = np.ones(problem.size, dtype=bool)
    movable[list(fixed)] = False
    theta = np.clip(starts, low, high)
    objective = np.full(len(theta), np.inf)
    gradient = np.full(len(theta), np.inf)
    damping = np.full(len(theta), 1.0)
    stalled = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    model, powers = problem.parts(theta)
    identity = np.eye(problem.size)
    for _ in range(iterations):
        here, w, y = theta[active], weights[active], None if targets is None else targets[active]
        value, g, uncancelled, hessian, above = problem.expansion(here, w, y, (model, powers))
        free = movable & _inward(here, g, nearly, high)
        g = np.where(free, g, 0)
        relative = _relative(g, uncancelled, w)
        objective[active], gradient[active] = value, relative
        going = (relative > tolerance) & (stalled[active] < 12)
        if not going.any():
            break
        if not going.all():
            model, powers = model[going], powers[going]
        active, here, w, value = active[going], here[going], w[going], value[going]
        y = None if y is None else y[going]
        g, hessian, above, free = g[going], hessian[going], above[going], free[going]
        damped = damping[active, None, None]
        ridge = (1e-14 + 1e-11 * damped) * np.trace(above, axis1=1, axis2=2)[:, None, None] + 1e-300
        matrix = hessian + damped * above + ridge * identity
        pair = free[:, :, None] & free[:, None, :]
        matrix = np.where(pair, matrix, identity)
        step = -np.linalg.solve(matrix, g[:, :, None])[:, :, 0]
        # The steps of exponents are limited: far from the optimum the quadratic is a poor guide.
        reach = np.abs(step[:, 1 + problem.terms :]).max(axis=1)
        step *= np.minimum(1, 0.5 / np.maximum(reach, 1e-300))[:, None]
        there = np.clip(here + step, low, high)
        # A term that one long step puts out never comes back, its exponent having lost its gradient: approach 0 slowly.
        linear = slice(0, 1 + problem.terms)
        there[:, linear] = np.maximum(there[:, linear], 0.1 * here[:, linear])
        there[:, linear][there[:, linear] < 1e-12] = 0
        new_model, new_powers = problem.parts(there)
        better = (problem.objective_of(new_model, w, y) < value) & (np.einsum("pq,pq->p", step, g) < 0)
        theta[active[better]] = there[better]
        model[better], powers[better] = new_model[better], new_powers[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 6.0), 1e-9, 1e9)
        stalled[active] = np.where(better, 0, stalled[active] + 1)
    gone = movable & (np.arange(problem.size) <= problem.terms) & (theta <= GONE)
    return Rest(*_without_the_gone(problem, theta, gone, weights, targets), gradient)


def _inward(theta: Floats, g: Floats, low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Parameters that their bounds do not hold: inside, or with a gradient that leads inside."""
    held: NDArray[np.bool_] = ((theta <= low) & (g > 0)) | ((theta >= high) & (g < 0))
    return ~held


def _relative(g: Floats, uncancelled: Floats, weights: Floats) -> Floats:
    """The length of each gradient (P, q), relative to what it would be if nothing cancelled."""
    length: Floats = np.linalg.norm(g, axis=1) / (uncancelled + EXACT * weights.sum(axis=1))
    return length


def settled_by_newton(problem: Problem, rest: Rest, weights: Floats) -> Rest:
    """One start (1, q) by Newton's own steps, judged by the gradient: in a flat valley the objective's last digits do
    not tell a better place from a worse one, but its gradient does."""
    low, high = problem.bounds
    _, g, _, hessian, _ = problem.expansion(rest.theta, weights)
    for _ in range(10):
        free = np.flatnonzero((rest.theta[0] > low) & (rest.theta[0] < high))
        step = np.zeros(problem.size)
        step[free] = -np.linalg.lstsq(hessian[0][np.ix_(free, free)], g[0, free], rcond=None)[0]
        there = np.clip(rest.theta + step, low, high)
        value, g, uncancelled, hessian, _ = problem.expansion(there, weights)
        gradient = _relative(np.where(_inward(there, g, low, high), g, 0), uncancelled, weights)
        if not (gradient[0] < rest.gradient[0] and value[0] <= rest.objective[0] * (1 + 1e-9)):
            break
        rest = Rest(there, value, gradient)
    return rest


def _without_the_gone(
    problem: Problem, theta: Floats, gone: NDArray[np.bool_], weights: Floats, targets: Floats | None
) -> tuple[Floats, Floats]:
    """Coefficients that are `gone` (P, q) set to 0 where that is no worse: parameters (P, q) and objective (P,)."""
    objective = problem.objective(theta, weights, targets)
    rows = gone.any(axis=1)
    if rows.any():
        there = np.where(gone[rows], 0, theta[rows])
        reached = problem.objective(there, weights[rows], None if targets is None else targets[rows])
        better = reached <= objective[rows]
        theta[rows] = np.where(better[:, None], there, theta[rows])
        objective[rows] = np.where(better, reached, objective[rows])
    return theta, objective


def solve_linear(problem: Problem, exponents: Floats, weights: Floats, rounds: int = 1) -> tuple[Floats, Floats]:
    """The inner problem of variable projection: E and A_j >= 0 for given exponents.

    `exponents` (G, exponents), `weights` (P, n) -> scaled parameters (P, G, q) and their objective (P, G). Each round
    solves min over E, A >= 0 of sum weight_i v_i (model_i / loss_i - 1)^2 exactly (every active set of so few columns
    is tried), where v are the Huber weights at the previous round; relative error is log error to first order. The
    result is where the joint minimisation starts, so one round is enough for most purposes.
    """
    P, G, k = len(weights), len(exponents), 1 + problem.terms
    powers = problem.powers(exponents)  # (G, terms, n)
    columns = np.concatenate([np.ones((G, 1, powers.shape[2])), powers], axis=1)
    if problem.logarithmic:
        columns = columns / problem.y
    target = np.ones_like(problem.y) if problem.logarithmic else problem.y
    theta = np.zeros((P, G, problem.size))
    theta[:, :, k:] = exponents
    products = np.einsum("gan,gbn->gabn", columns, columns).reshape(G * k * k, -1)
    sides = (columns * target).reshape(G * k, -1)
    given, weights = weights, weights if problem.weight is None else weights * problem.weight
    robust = weights
    for turn in range(rounds):
        if turn == 0:  # the weights do not depend on the exponents yet: one matrix product
            normal = (robust @ products.T).reshape(P, G, k, k)
            side = (robust @ sides.T).reshape(P, G, k)
        else:
            normal = np.einsum("pgn,gan,gbn->pgab", robust, columns, columns, optimize=True)
            side = np.einsum("pgn,gan->pga", robust, columns * target, optimize=True)
        theta[:, :, :k] = nonnegative(normal, side)
        if turn + 1 < rounds:
            r = np.einsum("pga,gan->pgn", theta[:, :, :k], columns) - target
            sided = np.where(r < 0, problem.above, 1.0)
            robust = weights[:, None, :] * sided * np.minimum(1, problem.delta / np.maximum(np.abs(r), 1e-9))
    flat = theta.reshape(P * G, problem.size)
    blocks = _blocks(P * G, problem.loss.size)
    objective = np.concatenate([problem.objective(flat[rows], given[rows // G]) for rows in blocks])
    return theta, objective.reshape(P, G)


def nonnegative(normal: Floats, side: Floats) -> Floats:
    """min over v >= 0 of v' normal v / 2 - side' v, batched, by trying every set of non-zero columns."""
    k = side.shape[-1]
    best = np.zeros_like(side)
    lowest = np.zeros(side.shape[:-1])
    for count in range(1, k + 1):
        for chosen in combinations(range(k), count):
            index = list(chosen)
            block = normal[..., index, :][..., :, index]
            ridge = 1e-13 * np.trace(block, axis1=-2, axis2=-1)[..., None, None] + 1e-300
            part = np.linalg.solve(block + ridge * np.eye(count), side[..., index][..., None])[..., 0]
            value = -0.5 * np.einsum("...a,...a->...", part, side[..., index])
            take = (part >= 0).all(axis=-1) & (value < lowest)
            full = np.zeros_like(side)
            full[..., index] = part
            best = np.where(take[..., None], full, best)
            lowest = np.where(take, value, lowest)
    return best
