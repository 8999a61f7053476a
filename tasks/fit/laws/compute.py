"""L(C) = E + K C^-gamma: loss against compute alone, for runs of which no more is known or that lie along one line."""

from __future__ import annotations

import numpy as np

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.powers import Power, SumOfPowers
from reducible.tasks.fit.objective import Floats


class OfCompute(SumOfPowers):
    """What loss to expect of more compute that is split as it was in these runs; how to split it is not said."""

    def optimal(self, theta: Floats, cost: Cost, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
        unknown = np.full(len(theta), np.nan)
        return unknown, unknown, self.loss(theta, C=compute)

    def required(self, theta: Floats, cost: Cost, loss: Floats) -> tuple[Floats, Floats, Floats]:
        E, K, gamma = theta.T
        unknown = np.full(len(theta), np.nan)
        with np.errstate(all="ignore"):  # a loss at or below E takes the power of a negative number
            return unknown, unknown, np.where(loss > E, ((loss - E) / K) ** (-1 / gamma), np.inf)


COMPUTE = OfCompute(
    name="compute",
    powers=(Power("K", "C", "gamma"),),
    meanings={"K": "scale of what compute removes", "gamma": "how fast it removes it"},
    source=("Henighan et al. 2020", "https://arxiv.org/abs/2010.14701"),
)
