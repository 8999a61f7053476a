"""The interface of a form of a law, for the fit, `predict` and the report."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.objective import Floats, Problem

SIZES = (0.0, 46.0)  # log N is searched from 1 to 1e20 parameters
SCAN = 48  # sizes of the first look: one in each factor of 2.7
COMPUTES = (0.0, 138.0)  # log C from 1 to 1e60 FLOPs


class Form(ABC):
    """How loss depends on the columns of a run. Parameters stand in one order: E, the coefficients, the exponents.

    A table of laws is (rows, size). Losses are in nats per target unit.
    """

    name: str  # as `--form` takes it
    source: tuple[str, str]  # the paper, and its address
    meanings: Mapping[str, str]  # what each parameter but E says; {units} stands for the plural of the target unit

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns of a run that the formula reads, such as N and D."""

    @property
    @abstractmethod
    def coefficients(self) -> tuple[str, ...]:
        """Names of the parameters that the loss is linear in, without E."""

    @property
    @abstractmethod
    def exponents(self) -> tuple[str, ...]:
        """Names of the parameters that are searched."""

    @abstractmethod
    def loss(self, theta: Floats, **columns: ArrayLike) -> Floats:
        """The formula. The columns and all axes of `theta` but the last, which holds the parameters, broadcast."""

    @abstractmethod
    def problem(self, columns: Mapping[str, Floats], loss: Floats, delta: float) -> Problem:
        """The same formula as the solver takes it, over runs: columns (n,) and loss (n,)."""

    @abstractmethod
    def terms(self, written: Mapping[str, str]) -> tuple[str, ...]:
        """The formula in words, a text for each term, with what is `written` for each parameter."""

    def lacks(self, columns: Mapping[str, Floats]) -> str:
        """Why these runs cannot carry the form, beyond their number, in words; empty if they can."""
        return ""

    def remarks(self, draws: Floats, columns: Mapping[str, Floats]) -> tuple[str, ...]:
        """Sentences that a reader of this law needs, from its draws (draws, size)."""
        return ()

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("E", *self.coefficients, *self.exponents)

    @property
    def size(self) -> int:
        return len(self.parameters)

    @property
    def variables(self) -> str:
        """The columns as the formula writes them, such as (N, D)."""
        return f"({', '.join(self.columns)})"

    @property
    def formula(self) -> str:
        """The formula as text, such as L(N, D) = E + A N^-alpha + B D^-beta."""
        return f"L{self.variables} = {' + '.join(self.terms({name: name for name in self.parameters}))}"

    @property
    def splits(self) -> bool:
        """Whether it says how to split compute between N and D."""
        return {"N", "D"} <= set(self.columns)

    def optimal(self, theta: Floats, cost: Cost, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
        """N*, D* and loss of every law (rows, size) at `compute` FLOPs, one for all or one each; nan if there is none.

        The optimum is searched. A form whose optimum has a formula may override this; one that does not split compute
        must.
        """
        compute = np.broadcast_to(np.asarray(compute, dtype=float), len(theta))
        log_N, loss = self._search(theta, cost, compute)
        N = np.exp(log_N)
        first = max(SIZES[0], cost.smallest)
        inside = (log_N > first + 1e-6) & (log_N < SIZES[1] - 1e-6) & np.isfinite(loss)
        return tuple(np.where(inside, value, np.nan) for value in (N, cost.units(N, compute), loss))  # type: ignore[return-value]

    def required(self, theta: Floats, cost: Cost, loss: Floats) -> tuple[Floats, Floats, Floats]:
        """N*, D* and C of every law (rows, size) for its own loss (rows,); infinite where that is at or below E."""
        reachable = loss > theta[:, 0]
        goal = np.where(reachable, loss, theta[:, 0] + 1.0)
        low, high = (np.full(len(theta), end) for end in COMPUTES)
        for _ in range(60):
            middle = (low + high) / 2
            enough = self._search(theta, cost, np.exp(middle))[1] <= goal
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        compute = np.exp(high)
        N, D, _ = self.optimal(theta, cost, compute)
        found = N, D, np.where(np.isnan(N), np.nan, compute)
        return tuple(np.where(reachable, value, np.inf) for value in found)  # type: ignore[return-value]

    def _search(self, theta: Floats, cost: Cost, compute: Floats) -> tuple[Floats, Floats]:
        """log N of the lowest loss at each compute, and that loss, by a scan and golden section."""

        def at(log_N: Floats) -> Floats:
            N = np.exp(log_N)
            return self.loss(theta, N=N, D=cost.units(N, compute), C=compute)

        # A coarse scan first: golden section alone would end in any of several minima.
        sizes = np.linspace(max(SIZES[0], cost.smallest), SIZES[1], SCAN)
        with np.errstate(all="ignore"):  # far from the optimum a term may be more than a float can hold
            losses = np.stack([at(np.full(len(theta), size)) for size in sizes])
            best = np.where(np.isnan(losses), np.inf, losses).argmin(axis=0)
        low, high = sizes[np.maximum(best - 1, 0)], sizes[np.minimum(best + 1, SCAN - 1)]
        share = (math.sqrt(5) - 1) / 2
        left, right = high - share * (high - low), low + share * (high - low)
        with np.errstate(all="ignore"):
            at_left, at_right = at(left), at(right)
            for _ in range(45):
                lower = at_left < at_right
                low, high = np.where(lower, low, left), np.where(lower, right, high)
                inner = np.where(lower, high - share * (high - low), low + share * (high - low))
                value = at(inner)
                left, right = np.where(lower, inner, right), np.where(lower, left, inner)
                at_left, at_right = np.where(lower, value, at_right), np.where(lower, at_left, value)
            log_N = (low + high) / 2
            return log_N, at(log_N)
