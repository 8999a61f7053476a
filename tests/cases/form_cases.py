"""Tables of runs that follow forms other than Chinchilla's, and a form as a newcomer would add it: one object."""

from __future__ import annotations

import numpy as np
import pandas
from law_cases import isoflop_design

from reducible.tasks.fit.laws.powers import Power, SumOfPowers

TIED_TRUTH = {"E": 1.7, "A": 300.0, "B": 900.0, "alpha": 0.35}
COMPUTE_TRUTH = {"E": 1.5, "K": 900.0, "gamma": 0.18}

# A form that the package does not have, as a newcomer would add it.
TOY = SumOfPowers(
    name="toy",
    powers=(Power("A", "N", "alpha"), Power("B", "D", "alpha")),
    meanings={"A": "scale of what size removes", "B": "scale of what {units} remove", "alpha": "how fast"},
    source=("A toy", "https://example.org/toy"),
)


def tied_table(noise: float = 0.003, seed: int = 3) -> pandas.DataFrame:
    N, D = isoflop_design(4, 6)
    truth = TIED_TRUTH
    loss = truth["E"] + truth["A"] * N ** -truth["alpha"] + truth["B"] * D ** -truth["alpha"]
    return _noisy(N, D, loss, noise, seed)


def compute_table(noise: float = 0.002, seed: int = 5) -> pandas.DataFrame:
    N = np.geomspace(1e6, 1e9, 14)
    D = 20 * N
    return _noisy(N, D, COMPUTE_TRUTH["E"] + COMPUTE_TRUTH["K"] * (6 * N * D) ** -COMPUTE_TRUTH["gamma"], noise, seed)


def _noisy(N: np.ndarray, D: np.ndarray, loss: np.ndarray, noise: float, seed: int) -> pandas.DataFrame:
    factor = np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
    return pandas.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss * factor})
