"""What a reader wants first, in numbers: the law, the next budget, the compute for half the loss, how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reducible.tasks.errors import UserError
from reducible.tasks.fit.back_test import Extrapolation, by_ratio
from reducible.tasks.fit.best_loss import BestLoss, best_loss, identified
from reducible.tasks.fit.noise import far
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Estimate, Fit, Prediction
from reducible.tasks.words import listed, number, percent, plural, power_of_ten, spelled


@dataclass(frozen=True)
class Tested:
    """Back-tests of one fit on cheaper runs: how many predictions, how far out, how wrong (absolute, relative)."""

    below: float
    predictions: int
    nearest: float
    furthest: float
    median: float
    largest: float
    bias: float  # median signed error


@dataclass(frozen=True)
class Check:
    """One question about the fit's health: mark is good, look or bad."""

    mark: str
    name: str
    figure: str
    meaning: str


@dataclass(frozen=True)
class Answer:
    """The numbers at the top of the page; None if the runs do not say."""

    best: BestLoss | None
    identified: bool  # whether the E of `best` is; the E of the minima has its own interval
    level: str  # of the E of `best`: identified, weakly identified, not identified
    smallest: float | None  # C of the cheapest run used
    largest: float | None  # C of the most expensive run used
    exponent: Estimate | None
    per_decade: Estimate | None  # share of the reducible loss that ten times the compute removes
    to_halve: Estimate | None  # factor of compute
    ten_times: Prediction | None
    target: float | None  # the loss halfway from the best at `largest` to E
    half: Prediction | None  # the run that halves the reducible loss reached at `largest`
    tested: tuple[Tested, ...]
    reached: tuple[Extrapolation, ...]  # the same errors by how far they reached
    checks: tuple[Check, ...]
    advice: tuple[str, ...]


def answer(fit: Fit) -> Answer:
    """Everything at the top of the page; losses in nats per target unit, compute in FLOPs."""
    best, largest = best_loss(fit), (fit.largest_compute if fit.used else None)
    exponent = per_decade = to_halve = ten_times = half = target = None
    if best is not None and largest is not None:
        exponent, to_halve = best.exponent(largest), best.to_halve(largest)
        per_decade = Estimate(*(1 - 10.0**-g for g in (exponent.value, exponent.low, exponent.high)))
        ten_times = _predicted(fit, 10 * largest)
        half = _predicted(fit, to_halve.value * largest)
        target = best.E.value + float(best.reducible(largest)[0]) / 2
    tested, known = _tested(fit), identified(fit)
    by_law = best is not None and best.source == "law"
    return Answer(
        best=best,
        identified=known,
        level=fit.health.level if by_law else "identified" if known else "not identified",
        smallest=min(run.C for run in fit.used) if fit.used else None,
        largest=largest,
        exponent=exponent,
        per_decade=per_decade,
        to_halve=to_halve,
        ten_times=ten_times,
        target=target,
        half=half,
        tested=tested,
        reached=by_ratio(fit.back_tests),
        checks=_checks(fit),
        advice=_advice(fit, tested),
    )


def _predicted(fit: Fit, compute: float) -> Prediction | None:
    # A fit without a law, or compute beyond all bounds, has no prediction; the page then says so.
    if not 0 < compute < 1e60:
        return None
    try:
        return predict(fit, compute=compute)
    except UserError:
        return None


def _tested(fit: Fit) -> tuple[Tested, ...]:
    rows = []
    for below in sorted({test.below for test in fit.back_tests}):
        mine = [test for test in fit.back_tests if test.below == below and math.isfinite(test.error)]
        if mine:
            errors, ratios = np.array([test.error for test in mine]), [test.ratio for test in mine]
            size = np.abs(errors)
            numbers = float(np.median(size)), float(size.max()), float(np.median(errors))
            rows.append(Tested(below, len(mine), min(ratios), max(ratios), *numbers))
    return tuple(rows)


def _checks(fit: Fit) -> tuple[Check, ...]:
    """The figures an expert asks for, with what they mean here. Thresholds as in the fit's own warnings."""
    health, used, size = fit.health, fit.used, fit.form.size
    checks = [
        Check(
            "good" if health.cells >= 3 * size else "look" if health.cells > size else "bad",
            "Runs",
            f"{health.runs} used, {health.cells} different {fit.form.variables}",
            f"{spelled(size).capitalize()} parameters are fitted; {3 * size} different runs or more leave enough to "
            "judge the fit by.",
        )
    ]
    balance: list[float] = []
    if used:
        C, balance = [run.C for run in used], [run.D / run.N for run in used if run.D / run.N > 0]
        decades = math.log10(max(C) / min(C))
        checks.append(
            Check(
                "good" if decades >= 2 else "look" if decades >= 1 else "bad",
                "Range of compute",
                f"{decades:.2g} decades",
                "From the cheapest to the most expensive run used. Two decades or more separate E from the exponent.",
            )
        )
    if balance and fit.form.splits:
        spread = max(balance) / min(balance)
        checks.append(
            Check(
                "good" if spread >= 10 else "look" if spread >= 3 else "bad",
                "Range of D/N",
                f"{number(min(balance), 3)} to {number(max(balance), 3)}",
                "At one fixed D/N the terms in N and in D look alike, and E with them.",
            )
        )
    if fit.law is None:
        return tuple(checks)
    sigma, name = health.residual_deviation, health.residual_largest_run
    largest = bool(far(np.array(health.residual_largest), sigma))
    return (
        *checks,
        Check(
            "good" if health.share_at_best >= 0.1 else "look",
            "Starts at the best optimum",
            f"{percent(health.share_at_best)} of {health.starts}",
            f"The search began at {plural(health.starts, 'place')} and ended in {plural(health.basins, 'basin')}. "
            "A small share would mean that the best one was found by luck.",
        ),
        Check(
            "good" if health.gradient_norm <= 1e-6 else "look",
            "Gradient at the optimum",
            number(health.gradient_norm, 2),
            "Close to 0: the optimiser arrived, it did not merely stop.",
        ),
        Check(
            "good" if health.condition_number <= 1e4 else "look",
            "Condition number",
            number(health.condition_number, 3),
            "How nearly two parameters do the same work, after scaling. Above 10⁴ they are hardly separable.",
        ),
        Check(
            "bad" if health.bound_hits else "good",
            "Parameters at a bound",
            listed(list(health.bound_hits)),
            "A parameter at its bound was not found by the data.",
        ),
        Check(
            "good" if sigma <= 0.01 else "look",
            "Typical distance of a run from the law",
            percent(sigma),
            "Robust standard deviation of the log residuals: noise between seeds and what the form cannot express.",
        ),
        Check(
            "look" if largest else "good",
            "Largest distance",
            f"{percent(health.residual_largest)}: {name}",
            "More than six typical distances away: look at this run." if largest else "In line with the others.",
        ),
        Check(
            "good" if health.r_squared >= 0.95 else "look",
            "R² of the log reducible loss",
            number(health.r_squared),
            "Flattering by nature: it hides a wrong E. The back-test below is the better judge.",
        ),
        Check(
            "good" if health.identified else "look" if health.weak else "bad",
            "Is E identified?",
            {"identified": "yes", "weakly identified": "weakly", "not identified": "no"}[health.level],
            health.verdict,
        ),
    )


def _advice(fit: Fit, tested: tuple[Tested, ...]) -> tuple[str, ...]:
    """Runs that would make the law surer, most important first."""
    lines = []
    if fit.law is None:
        least, better = spelled(fit.form.size + 1), 3 * fit.form.size
        lines.append(
            f"Add runs: at least {least} different {fit.form.variables}, better {better}, "
            "over three budgets and three sizes."
        )
    elif not fit.health.identified:
        vary = ", and vary the data per parameter at each size" if fit.form.splits else ""
        lines.append(f"Add a budget ten times the largest{vary}: that is what tells E from a slow power law.")
    refused = [f"{power_of_ten(point.C)} FLOPs ({point.refused})" for point in fit.frontier.points if point.refused]
    if refused:
        lines.append(f"Extend the sizes of the budgets without a minimum: {'; '.join(refused)}.")
    if not tested:
        lines.append("Add budgets until a fit on the cheaper ones can be tried on the most expensive.")
    stopped = [run.name for run in fit.excluded if run.status != "finished"]
    if stopped:
        lines.append(f"Look at the runs that did not finish: {listed(stopped)}.")
    return tuple(lines)
