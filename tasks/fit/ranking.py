"""Which form of a law predicts best, by rolling back-test: each is fitted up to a level of compute, and predicts above.

Fit in sample never decides: a form with more parameters always fits better, and R^2 of any of them is above .98.
Predictions from one level share a fit and err together, so the levels are what is counted, and not the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from reducible.tasks.fit.laws.registry import FORMS
from reducible.tasks.fit.result import BackTest, Ranked, Ranking
from reducible.tasks.words import listed, plural

STANDARD = "chinchilla"  # taken if the runs cannot tell it from the best
SURE = 0.95  # probability of a one-sided paired test over levels from which one form is called better
LEVELS = 24  # at most, for each form
FEWEST_LEVELS = 3  # below it no pair of forms is told apart
SHARE = 0.5  # of the most predictions; a form with fewer is not compared, as all are judged by what all predict


@dataclass(frozen=True)
class _Errors:
    """Absolute relative errors of one form on the predictions that all compared forms made."""

    of_levels: np.ndarray  # (levels,) mean of each
    every: np.ndarray  # (predictions,)


def rank(back_tests: Mapping[str, Sequence[BackTest]], without: Mapping[str, str] | None = None) -> Ranking:
    """Forms by what they predicted, best first; `without` says of other forms why they have no back-test."""
    most = max((len(tests) for tests in back_tests.values()), default=0)
    reasons = dict(without or {})
    compared = {}
    for name, tests in back_tests.items():
        if len(tests) >= SHARE * most and tests:
            compared[name] = {(test.below, test.run): abs(test.error) for test in tests}
        else:
            reasons[name] = f"{plural(len(tests), 'prediction')} where others have {most}" if most else "no back-test"
    common = sorted(set.intersection(*(set(tests) for tests in compared.values()))) if compared else []
    if not common:
        chosen = next((name for name in (STANDARD, *back_tests) if name in back_tests), next(iter(reasons)))
        sentence = f"These runs have no back-test to rank forms by, so {chosen} is taken unjudged"
        return Ranking(tuple(Ranked(name, reason=reason) for name, reason in reasons.items()), chosen, False, sentence)
    levels = sorted({below for below, _ in common})
    errors = {name: _errors(tests, common, levels) for name, tests in compared.items()}
    order = sorted(errors, key=lambda name: float(errors[name].of_levels.mean()))
    equals = [name for name in order if not _better(errors[order[0]], errors[name])]
    chosen = STANDARD if STANDARD in equals else min(equals, key=lambda name: FORMS[name].size)
    rows = [
        Ranked(
            form=name,
            median=float(np.median(errors[name].every)),
            worst=float(errors[name].every.max()),
            mean=float(errors[name].of_levels.mean()),
            equal=name in equals,
        )
        for name in order
    ]
    rows += [Ranked(name, reason=reason) for name, reason in reasons.items()]
    told = len(equals) == 1
    return Ranking(tuple(rows), chosen, told, _sentence(order, equals, chosen, len(levels)), len(levels), len(common))


def _errors(
    tests: Mapping[tuple[float, str], float], common: Sequence[tuple[float, str]], levels: Sequence[float]
) -> _Errors:
    every = np.array([tests[key] for key in common])
    at = np.array([levels.index(below) for below, _ in common])
    return _Errors(np.array([every[at == level].mean() for level in range(len(levels))]), every)


def _better(best: _Errors, other: _Errors) -> bool:
    """Whether the first is better beyond chance: Student's test of the levels' differences of log error."""
    if len(best.of_levels) < FEWEST_LEVELS:
        return False
    gap = np.log(np.maximum(other.of_levels, 1e-12) / np.maximum(best.of_levels, 1e-12))
    spread = float(gap.std(ddof=1)) / math.sqrt(len(gap))
    if spread == 0:
        return float(gap.mean()) > 0
    return bool(stdtr(len(gap) - 1, gap.mean() / spread) > SURE)


def _sentence(order: Sequence[str], equals: Sequence[str], chosen: str, levels: int) -> str:
    if len(order) == 1:
        return f"{chosen} is the only form that these runs can carry and test"
    if len(equals) == 1:
        return f"{chosen} predicts best, beyond chance over {levels} levels of compute"
    few = f"{plural(levels, 'level')} of compute" + (f" (fewer than {FEWEST_LEVELS})" if levels < FEWEST_LEVELS else "")
    why = "the standard form" if chosen == STANDARD else "the one with the fewest parameters"
    return f"By {few} these runs cannot tell {listed(list(equals))} apart; {chosen} is taken, {why} of them"
