"""Fits of several families with known laws, for the tests of what overtakes what."""

from functools import cache

import numpy as np
import pandas
from scipy.optimize import brentq, minimize_scalar

from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.result import Fit

Law = tuple[float, float, float, float, float]  # E, A, B, alpha, beta

# On 6ND these two cross near 1e19 FLOPs: `early` starts lower, `late` falls faster.
EARLY: Law = (1.8, 150.0, 700.0, 0.30, 0.33)
LATE: Law = (1.8, 510.0, 2550.0, 0.36, 0.39)
BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)


def best(law: Law, C: float) -> float:
    """The law's lowest loss for C = 6ND, by brute force."""
    E, A, B, alpha, beta = law

    def loss(log_N: float) -> float:
        N = np.exp(log_N)
        return float(E + A * N**-alpha + B * (C / 6 / N) ** -beta)

    return float(minimize_scalar(loss, bounds=(5, 40), method="bounded", options={"xatol": 1e-10}).fun)


def crossing(first: Law, second: Law, low: float, high: float) -> float:
    """The C between low and high at which their lowest losses are equal."""
    return float(np.exp(brentq(lambda x: best(first, np.exp(x)) - best(second, np.exp(x)), np.log(low), np.log(high))))


def table(law: Law, noise: float, seed: int, budgets: tuple[float, ...] = BUDGETS, sizes: int = 6) -> pandas.DataFrame:
    """IsoFLOP runs of 6ND around the law's own optimum, `noise` the relative deviation of a loss."""
    E, A, B, alpha, beta = law
    rng, rows = np.random.default_rng(seed), []
    for C in budgets:
        middle = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
        for N in middle * np.geomspace(1 / 5, 5, sizes):
            loss = (E + A * N**-alpha + B * (C / 6 / N) ** -beta) * np.exp(noise * rng.normal())
            rows.append({"N": N, "D": C / 6 / N, "C": C, "loss": loss, "budget": C})
    return pandas.DataFrame(rows)


@cache
def fitted(
    law: Law, noise: float = 0.002, seed: int = 0, budgets: tuple[float, ...] = BUDGETS, draws: int = 100
) -> Fit:
    return fit_runs(table(law, noise, seed, budgets), FitOptions(bootstrap=draws))
