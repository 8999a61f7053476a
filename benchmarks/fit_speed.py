"""Time of a whole fit with 1000 bootstrap draws against the usual recipe: 4,500 starts of BFGS on the same objective.

    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py [--starts 4500]

Fifty simulated runs (known law, 0.3 % noise, isoFLOP design over four decades). By default every tenth start of the
usual grid is run and the time is multiplied by ten; --starts 4500 runs them all. Times are seconds of one core.
"""

import argparse
import itertools
import time

import numpy as np
import pandas
from scipy.optimize import minimize

from reducible.tasks.fit.bootstrap import bootstrap, cells_of
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.objective import huber
from reducible.tasks.fit.search import search

E, A, B, ALPHA, BETA = 1.8, 400.0, 2000.0, 0.34, 0.37


def runs(budgets: int = 5, sizes: int = 10) -> pandas.DataFrame:
    rows = []
    for C in np.geomspace(1e17, 1e21, budgets):
        best = ((ALPHA * A) / (BETA * B)) ** (1 / (ALPHA + BETA)) * (C / 6) ** (BETA / (ALPHA + BETA))
        rows += [(N, C / 6 / N, C) for N in best * np.geomspace(1 / 6, 6, sizes)]
    table = pandas.DataFrame(rows, columns=["N", "D", "C"])
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(table)))
    table["loss"] = (E + A * table.N**-ALPHA + B * table.D**-BETA) * noise
    return table


def usual_recipe(table: pandas.DataFrame, starts: int) -> tuple[np.ndarray, float]:
    """Hoffmann et al.'s grid of starts, logsumexp, BFGS with the exact gradient: objectives and seconds."""
    log_N, log_D, log_loss = (np.log(table[c].to_numpy()) for c in ("N", "D", "loss"))

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([p[0] - p[3] * log_N, p[1] - p[4] * log_D, np.full_like(log_N, p[2])])
        model = np.logaddexp.reduce(terms)
        share = np.exp(terms - model)
        pull = np.clip(model - log_loss, -1e-3, 1e-3)
        slopes = [share[0], share[1], share[2], -share[0] * log_N, -share[1] * log_D]
        return float(huber(model - log_loss, 1e-3).sum()), np.array([pull @ slope for slope in slopes])

    coefficients, exponents = np.arange(0, 30, 5), np.arange(0, 2.5, 0.5)
    grid = list(itertools.product(coefficients, coefficients, np.arange(-1, 1.5, 0.5), exponents, exponents))
    chosen = np.random.default_rng(0).permutation(len(grid))[:starts]
    began = time.process_time()
    found = [minimize(objective, grid[i], jac=True, method="BFGS", options={"gtol": 1e-9}).fun for i in chosen]
    return np.array(found), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=450)
    starts = parser.parse_args().starts
    table = runs()
    problem = CHINCHILLA.problem({c: table[c].to_numpy() for c in ("N", "D")}, table["loss"].to_numpy(), 1e-3)
    began = time.process_time()
    optimum = search(problem)
    searched = time.process_time() - began
    began = time.process_time()
    bootstrap(problem, optimum, cells_of(*problem.x), 1000, seed=0)
    drawn = time.process_time() - began
    began = time.process_time()
    fit_runs(table)
    whole = time.process_time() - began
    found, seconds = usual_recipe(table, starts)
    best = found.min()
    print(f"runs                              {len(table)}")
    print(
        f"search, {optimum.starts} starts                {searched:.2f} s, objective {optimum.objective:.9g}, "
        f"{100 * optimum.share_at_best:.0f} % of starts within 1e-4 of the best"
    )
    print(f"bootstrap                         {drawn:.2f} ms per draw")
    print(f"whole fit, 1000 draws             {whole:.2f} s")
    print(
        f"usual recipe, 4500 BFGS starts    {seconds * 4500 / len(found):.0f} s ({len(found)} run), "
        f"objective {best:.9g}, "
        f"{100 * np.mean(found <= best * (1 + 1e-4)):.0f} % of starts within 1e-4 of the best"
    )


if __name__ == "__main__":
    main()
