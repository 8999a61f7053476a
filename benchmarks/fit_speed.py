"""Time of a whole fit with 1000 bootstrap draws against the usual recipe: 4,500 starts of BFGS on the same objective.

    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py [--starts 4500]
    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py --sizes

With --sizes: a whole fit of 240 runs with 1,000 draws and of 10,000 runs with 100, the command `reducible fit` on the
240, and other forms on the 240 with 100 draws, each in a process of its own.

Fifty simulated runs (known law, 0.3 % noise, isoFLOP design over four decades). By default every tenth start of the
usual grid is run and the time is multiplied by ten; --starts 4500 runs them all. Times are seconds of one core.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
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


FIT = """
import resource, sys, time
import pandas
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
table, began = pandas.read_csv(sys.argv[1]), time.process_time()
fit_runs(table, FitOptions(bootstrap=int(sys.argv[2]), form=sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{time.process_time() - began:.2f} s, {peak:.2f} GB")
"""


def sizes() -> None:
    """Processor time of whole fits, of other forms and of the command."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {240: (10, 24), 10_000: (40, 250)}
        for many, (budgets, of_each) in tables.items():
            runs(budgets, of_each).to_csv(f"{folder}/{many}.csv", index=False)
        for many, draws, form in ((240, 1000, "chinchilla"), (10_000, 100, "chinchilla")):
            print(f"{many:,} runs, {draws:,} draws: {_output(FIT, f'{folder}/{many}.csv', str(draws), form)}")
        for form in ("tied", "overtraining", "compute", "farseer", "auto"):
            print(f"240 runs, 100 draws, {form}: {_output(FIT, f'{folder}/240.csv', '100', form)}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "reducible.pipelines.cli", "fit", f"{folder}/240.csv"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"reducible fit of 240 runs, 1,000 draws: {seconds:.2f} s")


def _output(code: str, *arguments: str) -> str:
    made = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return made.stdout.strip()


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
    parser.add_argument("--sizes", action="store_true")
    asked = parser.parse_args()
    if asked.sizes:
        sizes()
        return
    starts = asked.starts
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
