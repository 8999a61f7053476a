"""Chinchilla's law for data that are read more than once (Muennighoff et al. 2023, equation 5 and appendix A).

L = E + A N'^-alpha + B D'^-beta, with U unique units. Each repetition is worth less than the one before, and so are
parameters beyond those that U units can teach:

    D' = U + U R_D (1 - exp(-(D/U - 1) / R_D))
    N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N)),   U_N = min(N, N*(U))

where N*(U) is the compute-optimal size for U units at C = 6ND, (alpha A / (beta B))^(1/alpha) U^(beta/alpha). R_D and
R_N are how many repetitions it takes until a further one is worth 1/e of the first. Without repetition, at N <= N*(D),
it is Chinchilla's law. The solver works in 1/R, which is 0 where nothing decays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.curved import CurvedProblem
from reducible.tasks.fit.laws.form import COMPUTES, Form
from reducible.tasks.fit.objective import Floats, Problem, Range, all_of
from reducible.tasks.fit.repeats import repeated

RATES = Range(bounds=(1e-3, 10.0), starts=(0.03, 1.0), near=(0.05, 0.5))  # 1/R: from 1000 repetitions to a tenth
TAUGHT = 20.0  # log of how far N may exceed what U units can teach before N' stays as it is
FLAT = 3.0  # an interval of R wider than this factor is called a flat valley


class DataConstrained(Form):
    """Seven parameters; reads N, D and unique_tokens."""

    name = "data-constrained"
    source = ("Muennighoff et al. 2023", "https://arxiv.org/abs/2305.16264")
    meanings = {
        "A": "scale of what more parameters remove",
        "alpha": "how fast they remove it",
        "B": "scale of what more {units} remove",
        "beta": "how fast they remove it",
        "R_D": "repetitions of the data after which a further one is worth 1/e of the first",
        "R_N": "the same for parameters beyond those that the unique {units} can teach",
    }

    @property
    def columns(self) -> tuple[str, ...]:
        return ("N", "D", "unique_tokens")

    @property
    def coefficients(self) -> tuple[str, ...]:
        return ("A", "B")

    @property
    def exponents(self) -> tuple[str, ...]:
        return ("alpha", "beta", "R_D", "R_N")

    @property
    def variables(self) -> str:
        return "(N, D, U)"

    @property
    def formula(self) -> str:
        return super().formula + " with D' = U + U R_D (1 - e^(-(D/U - 1)/R_D)), N' alike"

    def terms(self, written: Mapping[str, str]) -> tuple[str, ...]:
        return (
            written["E"],
            f"{written['A']} N'^-{written['alpha']}",
            f"{written['B']} D'^-{written['beta']}",
        )

    def loss(self, theta: Floats, **columns: ArrayLike) -> Floats:
        """Without unique_tokens there are as many of them as anyone wants."""
        if "unique_tokens" not in columns:
            return CHINCHILLA.loss(np.asarray(theta)[..., :5], N=columns["N"], D=columns["D"])
        N, D, unique = (np.asarray(columns[name], dtype=float) for name in ("N", "D", "unique_tokens"))
        unique = np.minimum(D, unique)
        E, A, B, alpha, beta, R_D, R_N = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
        with np.errstate(divide="ignore"):  # without a term in N or in D any size is too large, or too small
            log_best = (np.log(alpha * A) - np.log(beta * B) + beta * np.log(unique)) / alpha
        taught = N * np.exp(np.clip(log_best - np.log(N), -600, 0))  # above what a float cannot hold
        D_effective = unique * (1 - R_D * np.expm1(-(D / unique - 1) / R_D))
        N_effective = taught * (1 - R_N * np.expm1(-(N / taught - 1) / R_N))
        return E + A * N_effective**-alpha + B * D_effective**-beta

    def problem(self, columns: Mapping[str, Floats], loss: Floats, delta: float) -> Problem:
        N, D, unique = (np.asarray(columns[name], dtype=float) for name in self.columns)
        ranges = (Range(), Range(), RATES, RATES)
        x, loss = np.stack([N, D]), np.asarray(loss, dtype=float)
        return RepeatedData(x, loss, (0, 1), delta, given_ranges=ranges, unique=np.minimum(unique, D))

    def optimal(self, theta: Floats, cost: Cost, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
        """With unique data for all of it: Chinchilla's optimum, where nothing decays."""
        return CHINCHILLA.optimal(theta[:, :5], cost, compute)

    def required(self, theta: Floats, cost: Cost, loss: Floats) -> tuple[Floats, Floats, Floats]:
        return CHINCHILLA.required(theta[:, :5], cost, loss)

    def lacks(self, columns: Mapping[str, Floats]) -> str:
        D, unique = columns["D"], columns["unique_tokens"]
        passes = np.unique((D / unique)[repeated(D, unique)])
        if len(passes) >= 2:
            return ""
        return (
            f"{len(passes)} numbers of repetitions cannot show what repeating is worth (2 at least); "
            "the form chinchilla needs none"
        )

    def remarks(self, draws: Floats, columns: Mapping[str, Floats]) -> tuple[str, ...]:
        """Runs that repeat too little to see the decay leave the valley of R flat: said, so that none is quoted."""
        most = float((columns["D"] / columns["unique_tokens"]).max()) - 1
        lines = []
        for name, what in (("R_D", "repeated data"), ("R_N", "parameters beyond what the data can teach")):
            mine = draws[:, self.parameters.index(name)]
            low, high = np.quantile(mine, [0.025, 0.975]) if len(mine) else (math.nan, math.nan)
            if high > FLAT * low:
                lines.append(
                    f"{name} lies in a flat valley: anything from {low:.3g} to {high:.3g} fits about as well, so these "
                    f"runs, which repeat their data up to {most:.3g} times, hardly say how fast {what} lose their worth"
                )
        return tuple(lines)


class WithUnique(DataConstrained):
    """The same law at a given number of unique units: of N and D alone, so that it has a frontier of its own."""

    def __init__(self, unique: float) -> None:
        self.unique = unique

    @property
    def columns(self) -> tuple[str, ...]:
        return ("N", "D")

    def loss(self, theta: Floats, **columns: ArrayLike) -> Floats:
        return super().loss(theta, N=columns["N"], D=columns["D"], unique_tokens=self.unique)

    def optimal(self, theta: Floats, cost: Cost, compute: float | Floats) -> tuple[Floats, Floats, Floats]:
        return Form.optimal(self, theta, cost, compute)

    def required(self, theta: Floats, cost: Cost, loss: Floats) -> tuple[Floats, Floats, Floats]:
        """Infinite also where repetition leads to no such loss."""
        N, D, C = Form.required(self, theta, cost, loss)
        sound = (theta[:, 1:3] > 0).all(axis=1)
        beyond = sound & ~(0.5 * math.exp(COMPUTES[1]) > C)  # a nan is one whose optimum left every size
        return tuple(np.where(beyond, np.inf, value) for value in (N, D, C))  # type: ignore[return-value]


@dataclass(frozen=True)
class RepeatedData(CurvedProblem):
    """x = (N, D); the solver's parameters are E, A, B, alpha, beta, 1/R_D, 1/R_N."""

    unique: Floats = field(default_factory=lambda: np.zeros(0))  # (n,), at most D

    @property
    def exponents(self) -> int:
        return 4

    def of_runs(self, rows: NDArray[np.intp]) -> Problem:
        return replace(super().of_runs(rows), unique=self.unique[rows])  # type: ignore[call-arg]

    def scaled(self, raw: Floats) -> Floats:
        theta = super().scaled(raw)
        theta[..., 5:] = 1 / theta[..., 5:]
        return theta

    def raw(self, theta: Floats) -> Floats:
        raw = super().raw(theta)
        raw[..., 5:] = 1 / raw[..., 5:]
        return raw

    def grid(self, points: int, near: bool = False) -> Floats:
        """Fewer nodes for each of four: 4 x 4 exponents with 3 x 2 rates at most."""
        each = (min(points, 4), min(points, 4), min(points // 2, 3), 2)
        ends = [of.near if near else of.starts for of in self.ranges]
        axes = [np.geomspace(*end, count) for end, count in zip(ends, each, strict=True)]
        return all_of(axes)

    def powers(self, exponents: Floats) -> Floats:
        """With N' = N: what U units can teach is not known before A and B are."""
        alpha, beta, rate = exponents[:, :1], exponents[:, 1:2], exponents[:, 2:3]
        log_D = np.log(self.unique) + np.log(_worth(self.x[1] / self.unique - 1, rate)[0])
        return np.stack([np.exp(-alpha * self.z[0]), np.exp(-beta * (log_D - np.log(self.centre[1])))], axis=1)

    def formula(self, theta: Floats) -> tuple[Floats, Floats]:
        E, A, B, alpha, beta, rate_D, rate_N = (theta[:, i, None] for i in range(7))
        log_N, log_U = np.log(self.x[0]), np.log(self.unique)
        centre_N, centre_D = np.log(self.centre)
        # log of N*(U)/N, with A and B as they are on this scale: log A_raw = log A + log unit + alpha centre_N.
        ratio = np.log(np.maximum(alpha * A, 1e-300)) - np.log(np.maximum(beta * B, 1e-300))
        log_best = centre_N + (ratio + beta * (log_U - centre_D)) / alpha
        excess = np.clip(log_N - log_best, 0, TAUGHT)
        binds = (excess > 0) & (excess < TAUGHT)
        repeats_N = np.expm1(excess)
        worth_N, by_rate_N, kept_N = _worth(repeats_N, rate_N)
        worth_D, by_rate_D, _ = _worth(self.x[1] / self.unique - 1, rate_D)
        log_effective_N = log_N - excess + np.log(worth_N) - centre_N
        log_effective_D = log_U + np.log(worth_D) - centre_D
        power_N, power_D = np.exp(-alpha * log_effective_N), np.exp(-beta * log_effective_D)
        of_N, of_D = A * power_N, B * power_D
        # What alpha, beta, A and B do to the first term by way of U_N: times A and d log U_N.
        through = np.where(binds, 1 - (repeats_N + 1) * kept_N / worth_N, 0.0) * -alpha * power_N
        slopes = np.empty((len(theta), len(log_N), 7))
        slopes[:, :, 0] = 1
        slopes[:, :, 1] = power_N + through / alpha
        slopes[:, :, 2] = power_D - A * through / np.maximum(alpha * B, 1e-300)
        slopes[:, :, 3] = -log_effective_N * of_N + A * through * (1 / alpha + centre_N - log_best) / alpha
        slopes[:, :, 4] = -log_effective_D * of_D + A * through * (-1 / beta + log_U - centre_D) / alpha
        slopes[:, :, 5] = -beta * of_D * by_rate_D / worth_D
        slopes[:, :, 6] = -alpha * of_N * by_rate_N / worth_N
        return E + of_N + of_D, slopes


def _worth(repeats: Floats, rate: Floats) -> tuple[Floats, Floats, Floats]:
    """1 + (1 - exp(-rate repeats)) / rate, its derivative by the rate, and exp(-rate repeats): what is left."""
    left = np.exp(-rate * repeats)
    worth = 1 - np.expm1(-rate * repeats) / rate
    return worth, (repeats * left - (worth - 1)) / rate, left


DATA_CONSTRAINED = DataConstrained()
