"""The compute-optimal frontier that the law implies, with the exact cost of the sizes that were run.

With C = f(N) D, s(N) = d log f / d log N, the minimum of E + A N^-alpha + B D^-beta at fixed C satisfies
alpha A N^-alpha = beta B D^-beta s(N). Read from N to C this is explicit, so the frontier is a curve over N:
D = (beta B s / (alpha A N^-alpha))^(1/beta), C = f(N) D, loss = E + A N^-alpha (1 + alpha / (beta s)).
For f = 6N it is the closed form N* ~ C^(beta / (alpha + beta)) (Hoffmann et al. 2022, appendix).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Allocation, Cost, Estimate

# Depth fixed, attention and output head grow as N^1/2; depth rising with width, as N^2/3 and N^1/3. A free power fits
# no better inside and extrapolates badly (checked against exact counts).
POWERS = (1 / 3, 1 / 2, 2 / 3, 3 / 4)
SIZES = (0.0, 46.0)  # log N is searched from 1 to 1e20 parameters


def cost_of(N: Floats, D: Floats, C: Floats) -> Cost:
    """FLOPs per unit as coefficient N + overhead N^power, by least squares of the relative error.

    The power is searched, the other two solved. Two sizes or fewer get the coefficient alone. The overhead must leave
    the cost rising over the sizes that were run; otherwise it is left out as well.
    """
    per_unit = C / D
    plain = float(np.exp(np.log(per_unit / N).mean()))
    best = Cost(plain, 0.0, 0.5, float(np.abs(plain * N / per_unit - 1).max()))
    if len(np.unique(N)) < 3 or best.worst < 1e-9:
        return best
    lowest = ((plain * N / per_unit - 1) ** 2).sum()
    for power in POWERS:
        columns = np.stack([N, N**power], axis=1) / per_unit[:, None]
        scale = np.linalg.norm(columns, axis=0)
        coefficient, overhead = np.linalg.lstsq(columns / scale, np.ones_like(N), rcond=None)[0] / scale
        error = columns @ [coefficient, overhead] - 1
        rising = coefficient + power * overhead * N.min() ** (power - 1) > 0
        if coefficient > 0 and rising and (error**2).sum() < lowest:
            lowest = (error**2).sum()
            best = Cost(float(coefficient), float(overhead), float(power), float(np.abs(error).max()))
    return best


def along(cost: Cost, laws: Floats, log_N: Floats) -> tuple[Floats, Floats, Floats]:
    """(draws, 5) laws and (draws,) log N -> log D, log C and loss where that N is optimal."""
    E, A, B, alpha, beta = laws.T
    extra = cost.overhead / cost.coefficient * np.exp((cost.power - 1) * log_N)
    log_f = math.log(cost.coefficient) + log_N + np.log(np.maximum(1 + extra, 1e-9))
    s = np.maximum((1 + cost.power * extra) / np.maximum(1 + extra, 1e-9), 1e-9)
    part = A * np.exp(-alpha * log_N)
    log_D = (np.log(beta * B * s) - np.log(alpha * A) + alpha * log_N) / beta
    return log_D, log_D + log_f, E + part * (1 + alpha / (beta * s))


def optimal(cost: Cost, laws: Floats, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
    """N*, D* and loss of every law (draws, 5) at `compute` FLOPs, one for all or one each; nan without an optimum."""
    target = np.log(compute)
    return _at(cost, laws, lambda log_C, loss: log_C < target)[:3]


def required(cost: Cost, laws: Floats, loss: Floats) -> tuple[Floats, Floats, Floats]:
    """N*, D* and C of every law (draws, 5) for its own loss (draws,); infinite where the loss is at or below E."""
    reachable = loss > laws[:, 0]
    goal = np.where(reachable, loss, laws[:, 0] + 1.0)
    N, D, _, C = _at(cost, laws, lambda _, reached: reached > goal)
    return tuple(np.where(reachable, value, math.inf) for value in (N, D, C))  # type: ignore[return-value]


def _at(
    cost: Cost, laws: Floats, too_small: Callable[[Floats, Floats], NDArray[np.bool_]]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Bisection over log N along each law's frontier: N, D, loss, C."""
    sound = (laws[:, 1] > 0) & (laws[:, 2] > 0)
    safe = np.where(sound[:, None], laws, [1.0, 1.0, 1.0, 0.5, 0.5])
    low = np.full(len(laws), max(SIZES[0], _smallest(cost)))
    high = np.full(len(laws), SIZES[1])
    for _ in range(60):
        middle = (low + high) / 2
        _, log_C, loss = along(cost, safe, middle)
        small = too_small(log_C, loss)
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    log_N = (low + high) / 2
    log_D, log_C, loss = along(cost, safe, log_N)
    with np.errstate(over="ignore"):
        values = np.exp(log_N), np.exp(log_D), loss, np.exp(log_C)
    return tuple(np.where(sound, value, math.nan) for value in values)  # type: ignore[return-value]


def _smallest(cost: Cost) -> float:
    """log N below which a negative overhead would make the cost fall with N."""
    if cost.overhead >= 0:
        return -math.inf
    return math.log(-cost.power * cost.overhead / cost.coefficient) / (1 - cost.power)


def allocation(cost: Cost, law: Floats, draws: Floats, C_from: float, C_to: float) -> Allocation | None:
    """Exponents of N* and D* between two budgets, for the law and for each bootstrap draw; None without an optimum."""
    span = math.log(C_to / C_from)

    def lines(laws: Floats) -> Floats:
        first, last = (optimal(cost, laws, C) for C in (C_from, C_to))
        start = math.log(C_from)
        with np.errstate(all="ignore"):  # a draw without an optimum worth the name: not finite, and left out below
            a, b = np.log(last[0] / first[0]) / span, np.log(last[1] / first[1]) / span
            return np.stack([a, b, np.log(first[0]) - a * start, np.log(first[1]) - b * start], axis=1)

    a, b, log_n, log_d = (float(v) for v in lines(law[None])[0])
    if not math.isfinite(a):
        return None
    table = lines(draws) if len(draws) else np.zeros((0, 4))
    table = table[np.isfinite(table).all(axis=1)]
    return Allocation(
        approach="law",
        a=estimate(a, table[:, 0]),
        b=estimate(b, table[:, 1]),
        n=math.exp(log_n),
        d=math.exp(log_d),
        draws=tuple(tuple(float(v) for v in row) for row in table),  # type: ignore[misc]
    )


def estimate(value: float, draws: Floats) -> Estimate:
    """The 95 % percentile interval; infinite draws count, missing ones do not."""
    draws = np.sort(draws[~np.isnan(draws)])
    if not len(draws):
        return Estimate(float(value))
    low, high = (draws[int(round(q * (len(draws) - 1)))] for q in (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))
