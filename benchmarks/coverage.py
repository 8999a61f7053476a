"""How often the 95 % intervals of a fit hold the truth: simulated runs of known laws, in the designs that people have.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--replicates 200] [--draws 300] [--designs nine,skew] [--out FILE]

Each replicate is one table of one design with noise of its own; the fit is the whole `fit_runs`. A row of the output is
a design; a column the share of replicates whose interval holds the truth: of the law's parameters, gamma (between the
largest compute and ten times it), N* and D* at 10 times, the expected loss at 10 and 100 times, and the exponent of the
isoFLOP minima. `level` is the share called identified, weakly and not. Of 200 replicates a true coverage of .95 gives
.91 to .98 in 99 of 100 cases.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas

from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.result import Estimate, estimate

E, A, B = 1.8, 400.0, 2000.0
LAW, SKEW = (0.34, 0.37), (0.24, 0.45)
COST = Cost(6.0, 0.0, 0.5, 0.0)
Rng = np.random.Generator
Columns = tuple[np.ndarray, np.ndarray]


def grid(budgets: int, sizes: int, low: float, high: float, exponents: tuple[float, float] = LAW) -> Columns:
    """Sizes from a sixth to six times each budget's best."""
    alpha, beta = exponents
    C = np.geomspace(low, high, budgets)[:, None]
    best = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
    N = best * np.geomspace(1 / 6, 6, sizes)
    return N.ravel(), (C / 6 / N).ravel()


def even(noise: float) -> Callable[[Rng, np.ndarray, np.ndarray], np.ndarray]:
    return lambda rng, N, D: noise * rng.normal(size=len(N))


def shrinking(rng: Rng, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """1.5 % at the smallest compute, .15 % at the largest."""
    C = np.log(N * D)
    return 0.015 * 0.1 ** ((C - C.min()) / np.ptp(C)) * rng.normal(size=len(N))


def cells(rng: Rng, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Three seeds a cell: .5 % that they share, .3 % of their own."""
    return 0.005 * np.repeat(rng.normal(size=len(N) // 3), 3) + 0.003 * rng.normal(size=len(N))


def tails(rng: Rng, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return 0.003 * rng.standard_t(3, size=len(N)) / math.sqrt(3)


def outlier(rng: Rng, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """One run of thirty is 30 % too high."""
    error = 0.002 * rng.normal(size=len(N))
    error[rng.integers(len(N))] += math.log(1.3)
    return error


def picked(count: int) -> Columns:
    N, D = grid(5, 7, 1e17, 1e21)
    chosen = np.random.default_rng(count).choice(35, count, replace=False)
    return N[chosen], D[chosen]


def repeated(columns: Columns, times: int) -> Columns:
    return np.repeat(columns[0], times), np.repeat(columns[1], times)


DESIGNS = {
    "7 runs, picked": (picked(7), even(0.003), LAW),
    "9 runs, 3 x 3": (grid(3, 3, 1e17, 1e21), even(0.003), LAW),
    "15 runs, 2 decades": (grid(3, 5, 1e17, 1e19), even(0.003), LAW),
    "35 runs, 4 decades": (grid(5, 7, 1e17, 1e21), even(0.003), LAW),
    "30 runs, noise 1.5 to .15 %": (grid(5, 6, 1e17, 1e21), shrinking, LAW),
    "12 cells x 3 seeds": (repeated(grid(3, 4, 1e17, 1e20), 3), cells, LAW),
    "24 runs .5 %, alpha .24 beta .45": (grid(4, 6, 1e17, 1e20, SKEW), even(0.005), SKEW),
    "30 runs, t3 tails": (grid(5, 6, 1e17, 1e21), tails, LAW),
    "30 runs, one outlier of 30 %": (grid(5, 6, 1e17, 1e21), outlier, LAW),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--designs", help="parts of their names, with commas between", default="")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = {}
    for name in DESIGNS:
        if any(part in name for part in asked.designs.split(",")):
            rows[name] = design(name, asked.replicates, asked.draws)
            print(name, json.dumps(rows[name]), flush=True)
            if asked.out:
                asked.out.write_text(json.dumps(rows, indent=1) + "\n")


def design(name: str, replicates: int, draws: int) -> dict[str, object]:
    began = time.process_time()
    hits: dict[str, list[bool]] = {}
    levels: list[str] = []
    for replicate in range(replicates):
        for what, (interval, truth) in one(name, replicate, draws, levels).items():
            hits.setdefault(what, []).append(interval.low <= truth <= interval.high)
    shares = [f"{levels.count(level) / len(levels):.2f}" for level in ("identified", "weakly identified")]
    return {
        **{what: round(float(np.mean(of)), 3) for what, of in hits.items()},
        "refused minima": round(1 - len(hits.get("isoFLOP a", ())) / replicates, 2),
        "level": "/".join([*shares, f"{levels.count('not identified') / len(levels):.2f}"]),
        "seconds": round(time.process_time() - began),
    }


def one(name: str, replicate: int, draws: int, levels: list[str]) -> dict[str, tuple[Estimate, float]]:
    """Interval and truth of everything that one table gives."""
    (N, D), noise, (alpha, beta) = DESIGNS[name]
    truth = np.array([E, A, B, alpha, beta])
    rng = np.random.default_rng([replicate, *name.encode()])
    table = pandas.DataFrame({"N": N, "D": D, "C": 6 * N * D})
    table["loss"] = CHINCHILLA.loss(truth, N=N, D=D) * np.exp(noise(rng, N, D))
    table["seed"] = table.groupby("N").cumcount()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = fit_runs(table, FitOptions(bootstrap=draws))
        levels.append(fit.health.level)
        law = fit.law
        assert law is not None
        found = {key: (law[key], float(truth[i])) for i, key in enumerate(law.form.parameters)}
        largest = fit.largest_compute
        best = best_loss(fit)
        if best is not None and best.source == "law":
            at = [float(CHINCHILLA.optimal(truth[None], COST, C)[2][0]) - E for C in (largest, 10 * largest)]
            found["gamma"] = (best.exponent(largest), math.log10(at[0] / at[1]))
        for times in (10, 100):
            real = [float(v[0]) for v in CHINCHILLA.optimal(truth[None], COST, times * largest)]
            ours = [v[:, None] for v in law.form.optimal(law.theta[None], fit.cost, times * largest)]
            table_of_draws = law.form.optimal(law.table, fit.cost, times * largest)
            for key, i in (("N*", 0), ("D*", 1), ("loss", 2)):
                if key == "loss" or times == 10:
                    value = estimate(float(ours[i][0, 0]), table_of_draws[i])
                    found[f"{key} at {times}"] = (value, real[i])
        if fit.isoflop is not None:
            found["isoFLOP a"] = (fit.isoflop.a, beta / (alpha + beta))
            found["isoFLOP b"] = (fit.isoflop.b, alpha / (alpha + beta))
    return found


if __name__ == "__main__":
    main()
