"""Fits for the tests of the report: a sound one from a known law with noise, and degenerate ones."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pandas

from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.result import Estimate, Fit, Frontier, Law

NAN, INF = math.nan, math.inf
TRUTH = {"E": 1.2, "A": 12.0, "B": 40.0, "alpha": 0.35, "beta": 0.38}
HOSTILE = "<script>alert('x')</script> $x_{ & \"quoted\""


def truth(N: float, D: float) -> float:
    return TRUTH["E"] + TRUTH["A"] * N ** -TRUTH["alpha"] + TRUTH["B"] * D ** -TRUTH["beta"]


def table(
    budgets: tuple[float, ...] = (1e11, 4e11, 1.6e12, 6.4e12), sizes: int = 6, noise: float = 0.003
) -> pandas.DataFrame:
    """IsoFLOP runs around the optimum of 6ND."""
    rng, rows = np.random.default_rng(0), []
    a, b = TRUTH["alpha"], TRUTH["beta"]
    for C in budgets:
        best = (a * TRUTH["A"] / (b * TRUTH["B"])) ** (1 / (a + b)) * (C / 6) ** (b / (a + b))
        for factor in np.geomspace(0.25, 4, sizes):
            N = round(best * factor)
            D = C / 6 / N
            loss = truth(N, D) * math.exp(noise * rng.normal())
            rows.append(
                {"name": f"C={C:.1e} N={N}", "N": N, "D": D, "C": C, "loss": loss, "budget": C, "status": "finished"}
            )
    return pandas.DataFrame(rows)


def options() -> FitOptions:
    return FitOptions(bootstrap=100)


@cache
def sound() -> Fit:
    """Four budgets of six sizes; three more runs that did not end well."""
    lost = [
        {"name": HOSTILE, "N": 30_000, "D": 1e6, "C": 4e11, "loss": NAN, "budget": 4e11, "status": "diverged"},
        {
            "name": "stopped early",
            "N": 60_000,
            "D": 1e6,
            "C": 8e11,
            "loss": 4.2,
            "budget": 1.6e12,
            "status": "unfinished",
        },
        {"name": "never began", "status": "unfinished", "reason": "did not finish: out of memory"},
    ]
    return fit_runs(pandas.concat([table(), pandas.DataFrame(lost)]), options())


def degenerate() -> dict[str, Fit]:
    """One of each kind of input that carries less than a report shows."""
    fit = sound()
    assert fit.law is not None and fit.allocation is not None and fit.profile is not None
    whole = table()
    upper = whole[whole.groupby("budget").N.transform("median") <= whole.N]
    nothing = replace(
        fit,
        runs=tuple(
            replace(run, used=False, reason="diverged", loss=NAN, fitted=None, residual=None) for run in fit.runs
        ),
        law=None,
        profile=None,
        allocation=None,
        isoflop=None,
        frontier=Frontier(()),
        back_tests=(),
        health=replace(fit.health, runs=0, cells=0, identified=False, verdict="no run was used"),
    )
    unknown = Estimate(1.2, NAN, INF)
    points = tuple(replace(p, N=_open(p.N), D=_open(p.D), loss=_open(p.loss)) for p in fit.frontier.points)
    unbounded = replace(
        fit,
        law=replace(changed(fit.law, "E", unknown), draws=()),
        allocation=replace(fit.allocation, draws=(), a=Estimate(0.5)),
        frontier=replace(fit.frontier, points=points),
        profile=replace(fit.profile, threshold=NAN, interval=Estimate(1.2, 0, INF)),
        back_tests=(replace(fit.back_tests[0], error=NAN),),
    )
    below = float(np.median([run.loss for run in fit.used]))
    return {
        "one budget": fit_runs(table(budgets=(1e12,)), options()),
        "three runs": fit_runs(table(budgets=(1e12,), sizes=3), options()),
        "everything excluded": nothing,
        "no minimum accepted": fit_runs(upper, options()),
        "E not identified": fit_runs(table(budgets=(1e12, 3e12), sizes=4, noise=0.02), options()),
        "open and unknown intervals": unbounded,
        "losses below E": replace(fit, law=changed(fit.law, "E", Estimate(below, below - 0.1, below + 0.1))),
        "no optimum": replace(fit, law=changed(fit.law, "A", Estimate(0.0, 0.0, 1.0))),
        "no budgets": fit_runs(whole.sample(12, random_state=1).drop(columns=["budget", "name"]), options()),
    }


def changed(law: Law, name: str, estimate: Estimate) -> Law:
    """The law with another estimate of one parameter."""
    return replace(law, parameters={**law.parameters, name: estimate})


def _open(estimate: Estimate | None) -> Estimate | None:
    return None if estimate is None else Estimate(estimate.value, NAN, INF)
