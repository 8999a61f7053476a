"""Runs of a law that is known: an isoFLOP grid and its table, with noise."""

import numpy as np
import pandas

from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.objective import Problem

E, A, B, ALPHA, BETA = 1.8, 400.0, 2000.0, 0.34, 0.37


QUICK = FitOptions(bootstrap=100)


def isoflop_design(
    budgets: int = 5, sizes: int = 7, low: float = 1e17, high: float = 1e21
) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a grid centred on each budget's optimum."""
    N, D = [], []
    for C in np.geomspace(low, high, budgets):
        best = ((ALPHA * A) / (BETA * B)) ** (1 / (ALPHA + BETA)) * (C / 6) ** (BETA / (ALPHA + BETA))
        N.append(best * np.geomspace(1 / 6, 6, sizes))
        D.append(C / 6 / N[-1])
    return np.concatenate(N), np.concatenate(D)


def true_loss(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return E + A * N**-ALPHA + B * D**-BETA


def table_of(N: np.ndarray, D: np.ndarray, noise: float = 0.0, seed: int = 0) -> pandas.DataFrame:
    loss = true_loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
    return pandas.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss})


def problem_of_law(N: np.ndarray, D: np.ndarray, loss: np.ndarray, delta: float = 1e-3) -> Problem:
    """Chinchilla's law over runs, as the solver takes it."""
    return CHINCHILLA.problem({"N": N, "D": D}, loss, delta)
