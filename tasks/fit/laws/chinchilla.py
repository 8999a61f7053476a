"""L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022), and its compute-optimal frontier.

With C = f(N) D, s(N) = d log f / d log N, the minimum at fixed C satisfies alpha A N^-alpha = beta B D^-beta s(N). Read
from N to C this is explicit, so the frontier is a curve over N: D = (beta B s / (alpha A N^-alpha))^(1/beta) and
C = f(N) D. For f = 6N it is the closed form N* ~ C^(beta / (alpha + beta)) (there, appendix).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.form import SIZES
from reducible.tasks.fit.laws.powers import Power, SumOfPowers
from reducible.tasks.fit.objective import Floats


class Chinchilla(SumOfPowers):
    """A sum of powers whose optimum is explicit."""

    def optimal(self, theta: Floats, cost: Cost, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
        target = np.log(compute)
        return self._at(cost, theta, lambda log_C, loss: log_C < target)[:3]

    def required(self, theta: Floats, cost: Cost, loss: Floats) -> tuple[Floats, Floats, Floats]:
        reachable = loss > theta[:, 0]
        goal = np.where(reachable, loss, theta[:, 0] + 1.0)
        N, D, _, C = self._at(cost, theta, lambda _, reached: reached > goal)
        return tuple(np.where(reachable, value, math.inf) for value in (N, D, C))  # type: ignore[return-value]

    def frontier(self, theta: Floats, cost: Cost, log_N: Floats) -> tuple[Floats, Floats, Floats]:
        """(rows, size) laws and (rows,) log N -> log D, log C and loss where that N is optimal."""
        _, A, B, alpha, beta = theta.T
        extra = cost.overhead / cost.coefficient * np.exp((cost.power - 1) * log_N)
        log_f = math.log(cost.coefficient) + log_N + np.log(np.maximum(1 + extra, 1e-9))
        s = np.maximum((1 + cost.power * extra) / np.maximum(1 + extra, 1e-9), 1e-9)
        log_D = (np.log(beta * B * s) - np.log(alpha * A) + alpha * log_N) / beta
        with np.errstate(all="ignore"):  # a draw with a tiny beta asks for more data than a float can count
            loss = self.loss(theta, N=np.exp(log_N), D=np.exp(log_D))
        return log_D, log_D + log_f, loss

    def _at(
        self, cost: Cost, theta: Floats, too_small: Callable[[Floats, Floats], NDArray[np.bool_]]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Bisection over log N along each law's frontier: N, D, loss, C."""
        sound = (theta[:, 1] > 0) & (theta[:, 2] > 0)
        safe = np.where(sound[:, None], theta, [1.0, 1.0, 1.0, 0.5, 0.5])
        low = np.full(len(theta), max(SIZES[0], cost.smallest))
        high = np.full(len(theta), SIZES[1])
        for _ in range(60):
            middle = (low + high) / 2
            _, log_C, loss = self.frontier(safe, cost, middle)
            small = too_small(log_C, loss)
            low, high = np.where(small, middle, low), np.where(small, high, middle)
        log_N = (low + high) / 2
        log_D, log_C, loss = self.frontier(safe, cost, log_N)
        with np.errstate(over="ignore"):
            values = np.exp(log_N), np.exp(log_D), loss, np.exp(log_C)
        return tuple(np.where(sound, value, math.nan) for value in values)  # type: ignore[return-value]


CHINCHILLA = Chinchilla(
    name="chinchilla",
    powers=(Power("A", "N", "alpha"), Power("B", "D", "beta")),
    meanings={
        "A": "scale of what more parameters remove",
        "alpha": "how fast they remove it",
        "B": "scale of what more {units} remove",
        "beta": "how fast they remove it",
    },
    source=("Hoffmann et al. 2022", "https://arxiv.org/abs/2203.15556"),
)
