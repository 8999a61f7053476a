"""IsoFLOP analysis: the minimum of loss over log N and over log D at each budget, and the frontier through the minima.

N* and D* are each the minimum of a curve over their own logarithm. Reading D* off N* would carry over the bend of one
axis to the other, wherever C is not quite proportional to N D.

A parabola over a whole grid is biased if the grid is off-centre (exponents up to 2.68 on published data). So only runs
within a factor `window` of its vertex are used, and a minimum that the runs do not enclose is refused with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Allocation, Frontier, IsoFlop, Run, estimate

Curve = Literal["parabola", "akima"]
Axis = Literal["N", "D"]
WORDS: dict[Axis, tuple[str, str, str]] = {"N": ("size", "smaller", "larger"), "D": ("duration", "shorter", "longer")}
SAME_BUDGET = 1.1  # runs without a budget of their own share one when their C differ by less than this factor
GAMMAS = np.geomspace(0.005, 2.0, 300)


@dataclass(frozen=True)
class Minima:
    """The budgets with, for each accepted one, draws of log N*, log D* and loss* under run noise."""

    points: tuple[IsoFlop, ...]
    draws: Floats  # (accepted budgets, draws, 3)

    @property
    def accepted(self) -> tuple[IsoFlop, ...]:
        return tuple(point for point in self.points if point.refused is None)


def budgets(runs: list[Run]) -> list[list[Run]]:
    """Used runs by budget, smallest first; seeds of one (N, D) stay as separate points."""
    used = sorted((run for run in runs if run.used), key=lambda run: (run.budget or run.C, run.N))
    groups: list[list[Run]] = []
    for run in used:
        first = groups[-1][0] if groups else None
        if first is None:
            groups.append([run])
        elif run.budget is not None and first.budget is not None:
            groups[-1].append(run) if run.budget == first.budget else groups.append([run])
        else:
            groups[-1].append(run) if run.C < first.C * SAME_BUDGET else groups.append([run])
    return groups


def minima(
    runs: list[Run],
    *,
    window: float = 4.0,
    draws: int = 1000,
    seed: int = 0,
    noise: float | None = None,
    about_law: tuple[float, float] = (math.nan, 0.0),
    curve: Curve = "parabola",
) -> Minima:
    """Every budget with three sizes or more gets its minimum or the reason why it has none.

    `noise` is the relative deviation of a run's loss. By default it is that about the parabolas, pooled over the
    budgets, or `about_law`, that about the law: the one with more degrees of freedom, which stand beside it. Noise
    that was estimated is drawn anew with every draw (a chi-squared of as many degrees of freedom), so that a slope
    gets Student's interval. Runs of one size share their noise: seeds differ less than sizes.
    """
    sized = [run for run in runs if math.isfinite(run.N) and math.isfinite(run.D)]
    groups = [group for group in budgets(sized) if len({run.N for run in group}) >= 3]
    shape_of = _shape if curve == "parabola" else _whole
    shapes = [shape_of(group, window, "N") for group in groups]
    lowest = _vertices if curve == "parabola" else _akima
    freedom = math.inf
    if noise is None:
        noise, freedom = max(_pooled(groups, shapes), about_law, key=lambda found: found[1])
    rng = np.random.default_rng(seed)
    wide = np.ones((draws, 1))
    if 0 < freedom < math.inf:
        wide = np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
    points, kept = [], []
    for group, shape in zip(groups, shapes, strict=True):
        x, loss = _axes(group)
        sizes, size_of, count = np.unique(x, return_inverse=True, return_counts=True)
        errors = wide * (rng.standard_normal((draws, len(sizes))) / np.sqrt(count))[:, size_of]
        over_D = shape_of(group, window, "D")
        if (refused := shape.refused or over_D.refused) is not None:
            points.append(replace(_point(group, shape), refused=refused))
            continue
        values = np.atleast_2d(loss if math.isnan(noise) else loss * np.exp(noise * errors))
        y = _axes(group, "D")[0]
        (log_N, minimum), (log_D, _) = lowest(x, values, shape), lowest(y, values, over_D)
        (best_N, best_loss), (best_D, _) = lowest(x, loss[None], shape), lowest(y, loss[None], over_D)
        if np.isnan(log_N).mean() > 0.05 or np.isnan(log_D).mean() > 0.05:
            reason = f"noise of {100 * noise:.2g} % hides the curvature"
            points.append(replace(_point(group, shape), refused=reason))
            continue
        table = np.stack([log_N, log_D, minimum], axis=1)
        if math.isnan(noise):
            table = np.full((draws, 3), math.nan)
        n, d, lost = float(best_N[0]), float(best_D[0]), float(best_loss[0])
        points.append(
            replace(
                _point(group, shape),
                N=estimate(math.exp(n), np.exp(table[:, 0])),
                D=estimate(math.exp(d), np.exp(table[:, 1])),
                loss=estimate(lost, table[:, 2]),
            )
        )
        kept.append(table)
    return Minima(tuple(points), np.stack(kept) if kept else np.zeros((0, draws, 3)))


def exponents(found: Minima) -> Allocation | None:
    """N* ~ C^a and D* ~ C^b by least squares through the minima in log-log; None below two minima."""
    points = found.accepted
    if len(points) < 2:
        return None
    C = np.log([point.C for point in points])
    best = np.log([[point.N.value, point.D.value] for point in points if point.N and point.D])
    a, log_n, b, log_d = _lines(C, best[:, None, :])[0]
    table = _lines(C, found.draws[:, :, :2])
    return Allocation(
        approach="isoflop",
        a=estimate(a, table[:, 0]),
        b=estimate(b, table[:, 2]),
        n=math.exp(log_n),
        d=math.exp(log_d),
        draws=tuple((float(r[0]), float(r[2]), float(r[1]), float(r[3])) for r in table if np.isfinite(r).all()),
    )


def frontier(found: Minima) -> Frontier:
    """L(C) = E + K C^-gamma through the minima: gamma searched, E and K >= 0 solved, relative least squares."""
    points = found.accepted
    if len(points) < 4:
        verdict = f"{len(points)} minima cannot carry E, K and gamma of L(C) = E + K C^-gamma: at least 4 are needed"
        return Frontier(found.points, verdict=verdict)
    C = np.array([point.C for point in points])
    loss = np.array([point.loss.value for point in points if point.loss])
    best = _power(C, loss[None])[0]
    draws = found.draws[:, :, 2].T
    table = _power(C, draws[np.isfinite(draws).all(axis=1)])
    if best[1] <= 0:
        return Frontier(found.points, verdict="the loss of the budgets' minima does not fall with compute")
    E, K, gamma = (estimate(float(best[i]), table[:, i]) for i in range(3))
    if len(table) and E.low > 0:
        verdict = f"E of the frontier lies between {E.low:.4g} and {E.high:.4g}"
    else:
        verdict = "E is not identified by these minima: its interval reaches 0"
    return Frontier(found.points, E, K, gamma, tuple((float(r[0]), float(r[1]), float(r[2])) for r in table), verdict)


@dataclass(frozen=True)
class _Shape:
    inside: NDArray[np.intp]  # indices of the runs in the window
    centre: float  # log N, or log D, about which the parabola is written
    curve: tuple[float, float, float] | None
    refused: str | None


def _axes(group: list[Run], axis: Axis = "N") -> tuple[Floats, Floats]:
    return np.log([getattr(run, axis) for run in group]), np.array([run.loss for run in group])


def _whole(group: list[Run], window: float, axis: Axis) -> _Shape:
    """No parabola: the whole budget is interpolated, and only a minimum at its end is refused."""
    x, loss = _axes(group, axis)
    shape = _Shape(np.arange(len(x)), float(x[np.argmin(loss)]), None, None)
    inside = np.isfinite(_akima(x, loss[None], shape)[0][0])
    return shape if inside else replace(shape, refused=f"the interpolated minimum is at an end: add {WORDS[axis][0]}s")


def _shape(group: list[Run], window: float, axis: Axis) -> _Shape:
    """The window around the vertex, moved until it stays, and what is wrong with the minimum, if anything."""
    x, loss = _axes(group, axis)
    word, less, more = WORDS[axis]
    lowest = int(np.argmin(loss))
    centre = float(x[lowest])
    if x[lowest] in (x.min(), x.max()):
        end, wanted = (f"{less[:-1]}st", less) if x[lowest] == x.min() else (f"{more[:-1]}st", more)
        refused = f"the lowest loss is at the {end} {word}: add {wanted} {word}s"
        return _Shape(_window(x, centre, window), centre, None, refused)
    for _ in range(20):
        inside = _window(x, centre, window)
        c2, c1, c0 = (float(v) for v in np.polyfit(x[inside] - centre, loss[inside], 2))
        curve = (c0, c1, c2)
        if curve[2] <= 0:
            return _Shape(inside, centre, curve, "the parabola opens downward: it has a maximum, no minimum")
        vertex = centre - curve[1] / (2 * curve[2])
        if not x[inside].min() < vertex < x[inside].max():
            return _Shape(inside, centre, curve, f"the vertex lies outside the {word}s of its window: add {word}s")
        if abs(vertex - centre) < 1e-9 or np.array_equal(_window(x, vertex, window), inside):
            return _Shape(inside, centre, curve, None)
        centre = vertex
    return _Shape(inside, centre, curve, None)


def _window(x: Floats, centre: float, window: float) -> NDArray[np.intp]:
    """Runs within the factor of the centre, and always the three nearest sizes."""
    sizes = np.unique(x)
    third = np.sort(np.abs(sizes - centre))[2]
    return np.flatnonzero(np.abs(x - centre) <= max(math.log(window), third) + 1e-12)


def _pooled(groups: list[list[Run]], shapes: list[_Shape]) -> tuple[float, float]:
    """Relative deviation of a run about its parabola and its degrees of freedom, both counted in sizes."""
    squares, freedom = 0.0, 0
    for group, shape in zip(groups, shapes, strict=True):
        if shape.curve is not None:
            x, loss = (axis[shape.inside] for axis in _axes(group))
            error = loss / np.polyval(shape.curve[::-1], x - shape.centre) - 1
            sizes, size_of, count = np.unique(x, return_inverse=True, return_counts=True)
            squares += float((np.bincount(size_of, error) ** 2 / count).sum())
            freedom += len(sizes) - 3
    return (math.sqrt(squares / freedom), float(freedom)) if freedom else (math.nan, 0.0)


def _point(group: list[Run], shape: _Shape) -> IsoFlop:
    N = [group[i].N for i in shape.inside]
    return IsoFlop(
        C=math.exp(np.log([run.C for run in group]).mean()),
        runs=tuple(run.name for run in group),
        window=(min(N), max(N)),
        curve=shape.curve,
        centre=math.exp(shape.centre),
        N=None,
        D=None,
        loss=None,
        refused=shape.refused,
    )


def _vertices(x: Floats, loss: Floats, shape: _Shape) -> tuple[Floats, Floats]:
    """(draws, runs) losses -> log N and loss at each draw's vertex; nan where the draw has no minimum.

    Noise can move the vertex of a flat parabola anywhere. The runs say nothing beyond the window, so it stops there.
    """
    inside = x[shape.inside] - shape.centre
    design = np.vander(inside, 3)
    c2, c1, c0 = np.linalg.pinv(design) @ loss[:, shape.inside].T
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(c2 > 0, np.clip(-c1 / (2 * c2), inside.min(), inside.max()), np.nan)
    return shape.centre + offset, c0 + c1 * offset + c2 * offset**2


def _akima(x: Floats, loss: Floats, shape: _Shape) -> tuple[Floats, Floats]:
    """The minimum of Akima's interpolation in log-log over the whole budget (Porian et al. 2024), for comparison."""
    from scipy.interpolate import Akima1DInterpolator  # a second of imports that parabolas do without

    sizes, at = np.unique(x, return_inverse=True)  # seeds of one size are one point of the curve
    seeds = np.eye(len(sizes))[at]
    curve = Akima1DInterpolator(sizes, (np.log(loss) @ seeds / seeds.sum(axis=0)).T)
    grid = np.linspace(x.min(), x.max(), 2001)
    values = curve(grid)
    lowest = values.argmin(axis=0)
    inside = (lowest > 0) & (lowest < len(grid) - 1)
    return np.where(inside, grid[lowest], np.nan), np.exp(values.min(axis=0))


def _lines(C: Floats, log_minima: Floats) -> Floats:
    """(budgets,), (budgets, draws, 2) -> (draws, 4): slope and intercept of log N*, then of log D*."""
    slopes, starts = np.einsum("pb,bdk->pdk", np.linalg.pinv(np.vander(C, 2)), log_minima)
    return np.stack([slopes[:, 0], starts[:, 0], slopes[:, 1], starts[:, 1]], axis=1)


def _power(C: Floats, loss: Floats) -> Floats:
    """(budgets,), (draws, budgets) -> (draws, 3): E, K, gamma."""
    gammas = np.broadcast_to(GAMMAS, (len(loss), len(GAMMAS)))
    for _ in range(3):
        best, near = _best_power(C, loss, gammas)
        step = np.abs(np.diff(np.log(gammas[:, :2]), axis=1))  # look closer, between the neighbours of the best
        gammas = near[:, None] * np.exp(step * np.linspace(-1, 1, 21))
    return best


def _best_power(C: Floats, loss: Floats, gammas: Floats) -> tuple[Floats, Floats]:
    """The best of each draw's gammas (draws, G): (E, K, gamma) and gamma alone."""
    middle = math.exp(np.log(C).mean())
    powers = (C / middle) ** -gammas[:, :, None]  # (draws, gammas, budgets)
    weights = loss**-2.0
    one, y = weights.sum(axis=1)[:, None], (weights * loss).sum(axis=1)[:, None]
    p, pp = np.einsum("db,dgb->dg", weights, powers), np.einsum("db,dgb,dgb->dg", weights, powers, powers)
    py = np.einsum("db,dgb->dg", weights * loss, powers)
    determinant = one * pp - p * p
    E, K = (pp * y - p * py) / determinant, (one * py - p * y) / determinant
    K = np.where(E < 0, py / pp, np.maximum(K, 0))
    E = np.where(E < 0, 0, np.where(K > 0, E, y / one))
    error = one * E * E + pp * K * K + 2 * p * E * K - 2 * y * E - 2 * py * K
    best = error.argmin(axis=1)
    rows = np.arange(len(loss))
    gamma = gammas[rows, best]
    return np.stack([E[rows, best], K[rows, best] * middle**gamma, gamma], axis=1), gamma
