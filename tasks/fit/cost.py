"""The training FLOPs of one target unit as a function of N, regressed on the sizes that were run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# With fixed depth, attention and output head grow as N^1/2; if depth grows with width, as N^2/3 and N^1/3. A free power
# fits no better inside the range and extrapolates badly (checked against exact counts).
POWERS = (1 / 3, 1 / 2, 2 / 3, 3 / 4)


@dataclass(frozen=True)
class Cost:
    """Training FLOPs per unit as a function of N, regressed on the table: coefficient N + overhead N^power.

    6ND is coefficient 6, overhead 0. In tiny models attention adds, and embeddings that are looked up subtract.
    """

    coefficient: float
    overhead: float
    power: float
    worst: float  # largest relative error of this formula over the runs

    def per_unit(self, N: ArrayLike) -> Floats:
        N = np.asarray(N, dtype=float)
        return self.coefficient * N + self.overhead * N**self.power

    def units(self, N: ArrayLike, C: ArrayLike) -> Floats:
        """D that C FLOPs buy at N parameters."""
        return np.asarray(C, dtype=float) / self.per_unit(N)

    @property
    def smallest(self) -> float:
        """log N below which a negative overhead would make the cost fall with N."""
        if self.overhead >= 0:
            return -math.inf
        return math.log(-self.power * self.overhead / self.coefficient) / (1 - self.power)


def cost_of(N: Floats, D: Floats, C: Floats) -> Cost:
    """FLOPs per unit as coefficient N + overhead N^power, by least squares of the relative error.

    The power is searched, the other two solved. Two sizes or fewer get the coefficient alone. The overhead must leave
    the cost rising over the sizes that were run; otherwise it is left out as well. Runs without N or D do not count;
    if that is all, it is 6ND.
    """
    known = np.isfinite(N) & np.isfinite(D)
    if not known.any():
        return Cost(6.0, 0.0, 0.5, 0.0)
    N, D, C = N[known], D[known], C[known]
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
