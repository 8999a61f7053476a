"""How the best loss falls with compute, and how surely: from the law in N and D, or from the budgets' minima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tasks.fit.optimum import estimate, optimal, required
from tasks.fit.result import Estimate, Fit, Floats


@dataclass(frozen=True)
class BestLoss:
    """Loss of compute-optimal training, nats per target unit. Row 0 of every table is the fit, the rest its draws."""

    source: str  # "law": L(N, D) at its best N and D; "minima": E + K C^-gamma through the minima of the budgets
    E: Estimate
    E_rows: Floats  # (1 + draws,)
    reducible_rows: Callable[[float], Floats]  # C -> (1 + draws,) loss - E
    compute_rows: Callable[[Floats], Floats]  # reducible loss of each row -> its C

    def reducible(self, C: ArrayLike) -> Floats:
        """Loss - E at each C."""
        return np.array([self.reducible_rows(value)[0] for value in np.atleast_1d(C)])

    def loss(self, C: ArrayLike) -> Floats:
        return self.E.value + self.reducible(C)

    def reducible_band(self, C: ArrayLike) -> tuple[Floats, Floats]:
        """95 % of the draws' reducible loss: every draw has its own E, so the band holds the uncertainty of E."""
        return self._band(C, np.zeros_like(self.E_rows))

    def loss_band(self, C: ArrayLike) -> tuple[Floats, Floats]:
        """95 % of the draws' loss."""
        return self._band(C, self.E_rows)

    def exponent(self, C: float) -> Estimate:
        """gamma: between C and 10 C the reducible loss falls as C^-gamma."""
        rows = np.log10(self.reducible_rows(C) / self.reducible_rows(10 * C))
        return estimate(float(rows[0]), rows[1:])

    def to_halve(self, C: float) -> Estimate:
        """How many times C halves the reducible loss that is reached at C."""
        rows = self.compute_rows(self.reducible_rows(C) / 2) / C
        return estimate(float(rows[0]), rows[1:])

    def _band(self, C: ArrayLike, offset: Floats) -> tuple[Floats, Floats]:
        ends = [estimate(0.0, (offset + self.reducible_rows(value))[1:]) for value in np.atleast_1d(C)]
        return np.array([end.low for end in ends]), np.array([end.high for end in ends])


def best_loss(fit: Fit) -> BestLoss | None:
    """The law's where there is one, else through the minima, else None."""
    return _from_law(fit) or _from_minima(fit)


def _from_law(fit: Fit) -> BestLoss | None:
    law = fit.law
    if law is None or not fit.health.splits:  # along one line of (N, D) the law has no optimum that means anything
        return None
    value = [law.E.value, law.A.value, law.B.value, law.alpha.value, law.beta.value]
    laws = np.array([value, *law.draws], dtype=float)
    laws = laws[np.r_[True, np.isfinite(laws[1:]).all(axis=1)]]
    if not np.isfinite(laws[0]).all() or not np.isfinite(optimal(fit.cost, laws[:1], 1e15)[2]).all():
        return None
    E = laws[:, 0]
    return BestLoss(
        "law",
        law.E,
        E,
        lambda C: optimal(fit.cost, laws, C)[2] - E,
        lambda reducible: required(fit.cost, laws, E + reducible)[2],
    )


def _from_minima(fit: Fit) -> BestLoss | None:
    frontier = fit.frontier
    if frontier.E is None or frontier.K is None or frontier.gamma is None:
        return None
    value = (frontier.E.value, frontier.K.value, frontier.gamma.value)
    rows = np.array([value, *frontier.draws], dtype=float)
    rows = rows[np.r_[True, np.isfinite(rows[1:]).all(axis=1)]]
    if not np.isfinite(value).all():
        return None
    E, K, gamma = rows.T
    return BestLoss("minima", frontier.E, E, lambda C: K * C**-gamma, lambda reducible: (reducible / K) ** (-1 / gamma))
