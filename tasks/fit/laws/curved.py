"""The solver's side of a form whose terms are no plain powers: it gives the model and its slopes, the rest follows."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from reducible.tasks.fit.objective import Floats, Parts, Problem

STEP = 1e-6  # of differences; an error of 1e-6 in a curvature slows Newton's steps by nothing


class CurvedProblem(Problem):
    """Runs to fit by a formula that may be any smooth one in all its parameters but E.

    Where a search begins, `powers` is what the coefficients multiply if the formula is read as linear in them.
    """

    @abstractmethod
    def formula(self, theta: Floats) -> tuple[Floats, Floats]:
        """(P, size) parameters on the solver's scale -> the model (P, n) and its derivatives (P, n, size)."""

    def parts(self, theta: Floats) -> Parts:
        model, slopes = self.formula(theta)
        return np.maximum(model, 1e-12), slopes

    def slopes(self, theta: Floats, powers: Floats) -> Floats:
        """The second of `parts`, which are the slopes here."""
        return powers

    def bend(self, theta: Floats, powers: Floats, pull: Floats, hessian: Floats) -> None:
        """Second derivatives by differences of the slopes: only their sum over the runs is needed."""
        bent = np.empty_like(hessian)
        for i in range(1, self.size):  # E adds to the model, and bends nothing
            step = np.zeros(self.size)
            step[i] = STEP
            bent[:, i] = np.einsum("pn,pnq->pq", pull, self.formula(theta + step)[1] - powers) / STEP
        bent[:, 0] = 0
        hessian += (bent + bent.transpose(0, 2, 1)) / 2
