"""How the best loss falls with compute, and how surely: from the law in N and D, or from the budgets' minima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.result import Estimate, Fit, Floats, estimate


@dataclass(frozen=True)
class BestLoss:
    """Loss of compute-optimal training, nats per target unit. Row 0 of every table is the fit, the rest its draws."""

    source: str  # "law": at its best N and D; "minima": E + K C^-gamma through the minima of the budgets
    E: Estimate
    E_rows: Floats  # (1 + draws,)
    reducible_rows: Callable[[Floats], Floats]  # C (points,) -> (points, 1 + draws) loss - E
    compute_rows: Callable[[Floats], Floats]  # reducible loss of each row -> its C

    def loss_rows(self, C: ArrayLike) -> Floats:
        """(points, 1 + draws)."""
        return self.E_rows + self.reducible_rows(np.atleast_1d(C))

    def reducible(self, C: ArrayLike) -> Floats:
        """Loss - E at each C."""
        return self.reducible_rows(np.atleast_1d(C))[:, 0]

    def loss(self, C: ArrayLike) -> Floats:
        return self.E.value + self.reducible(C)

    def reducible_band(self, C: ArrayLike) -> tuple[Floats, Floats]:
        """95 % of the draws' reducible loss: every draw has its own E, so the band holds the uncertainty of E."""
        return band(self.reducible_rows(np.atleast_1d(C)))

    def loss_band(self, C: ArrayLike) -> tuple[Floats, Floats]:
        """95 % of the draws' loss."""
        return band(self.loss_rows(C))

    def exponent(self, C: float) -> Estimate:
        """gamma: between C and 10 C the reducible loss falls as C^-gamma."""
        rows = np.log10(self.reducible_rows(np.array([C]))[0] / self.reducible_rows(np.array([10 * C]))[0])
        return estimate(float(rows[0]), rows[1:])

    def to_halve(self, C: float) -> Estimate:
        """How many times C halves the reducible loss that is reached at C."""
        rows = self.compute_rows(self.reducible_rows(np.array([C]))[0] / 2) / C
        return estimate(float(rows[0]), rows[1:])


def band(rows: Floats) -> tuple[Floats, Floats]:
    """(points, 1 + draws) -> the ends of 95 % of the draws at each point; row 0 is the fit, no draw."""
    ends = [estimate(0.0, row[1:]) for row in rows]
    return np.array([end.low for end in ends]), np.array([end.high for end in ends])


def best_loss(fit: Fit) -> BestLoss | None:
    """From the law if there is one, else through the minima, else None."""
    return _from_law(fit) or _from_minima(fit)


def identified(fit: Fit) -> bool:
    """Whether the runs identify the E of the best loss. The E of the minima has its own interval."""
    best = best_loss(fit)
    return best is not None and (fit.health.identified if best.source == "law" else best.E.low > 0)


def _from_law(fit: Fit) -> BestLoss | None:
    law = fit.law
    if law is None or (
        law.form.splits and not fit.health.splits
    ):  # along one line of (N, D) the law has no optimum that means anything
        return None
    laws = np.concatenate([law.theta[None], law.table])
    laws = laws[np.r_[True, np.isfinite(laws[1:]).all(axis=1)]]
    if not np.isfinite(laws[0]).all() or not np.isfinite(law.form.optimal(laws[:1], fit.cost, 1e15)[2]).all():
        return None
    E = laws[:, 0]

    known: dict[bytes, Floats] = {}  # the pictures of one page ask for the same points again and again

    def reducible(C: Floats) -> Floats:
        if C.tobytes() not in known:
            known[C.tobytes()] = searched(C)
        return known[C.tobytes()]

    def searched(C: Floats) -> Floats:
        # All points and draws share one bisection: one alone is less work than calling NumPy.
        losses = law.form.optimal(np.tile(laws, (len(C), 1)), fit.cost, np.repeat(C, len(laws)))[2]
        return losses.reshape(len(C), len(laws)) - E

    def compute(reducible: Floats) -> Floats:
        return law.form.required(laws, fit.cost, E + reducible)[2]

    return BestLoss("law", law.E, E, reducible, compute)


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

    def through_minima(C: Floats) -> Floats:
        return K * C[:, None] ** -gamma

    return BestLoss("minima", frontier.E, E, through_minima, lambda reducible: (reducible / K) ** (-1 / gamma))
