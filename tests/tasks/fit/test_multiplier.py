"""The compute multiplier of a variant: the closed form of known laws, an independent optimiser, and its coverage."""

from dataclasses import replace

import numpy as np
import pytest
from overtaking_cases import EARLY, LATE, Law, best, fitted
from scipy.optimize import brentq, minimize

from reducible.tasks.fit.multiplier import CONTRADICTED, KNOWN, UNKNOWN, Multiplier, _together, multiplier
from reducible.tasks.fit.objective import huber
from reducible.tasks.fit.result import Fit
from reducible.tasks.fit.search import search


def variant(parameters: float, data: float, law: Law = EARLY) -> Law:
    """A law whose parameters and data count so many times those of another."""
    E, A, B, alpha, beta = law
    return (E, A * parameters**-alpha, B * data**-beta, alpha, beta)


def between(base: Fit, other: Fit) -> Multiplier:
    return multiplier("base", "variant", (base, other))


def test_the_closed_form_is_the_horizontal_distance_of_the_best_losses() -> None:
    """By brute force, at any compute: the base reaches the variant's best loss with 1.5 * 1.2 times the compute."""
    for C in (1e18, 1e22):
        loss = best(variant(1.5, 1.2), C)
        needed = np.exp(brentq(lambda x, loss=loss: best(EARLY, np.exp(x)) - loss, np.log(C / 10), np.log(10 * C)))
        assert needed / C == pytest.approx(1.8, rel=1e-4)


def test_a_known_multiplier_is_found() -> None:
    found = between(fitted(EARLY, 0.002, 1), fitted(variant(1.5, 1.2), 0.002, 4))
    assert found.verdict == KNOWN and found.factor is not None
    assert found.factor.low < 1.8 < found.factor.high and found.factor.high / found.factor.low < 1.2
    assert found.probability > 0.05
    assert found.sentence.startswith("the compute of variant counts 1.")
    for end in found.ends:
        assert end.factor.low < 1.8 < end.factor.high
    back = between(fitted(variant(1.5, 1.2), 0.002, 4), fitted(EARLY, 0.002, 1))
    assert back.factor is not None and back.factor.value == pytest.approx(1 / found.factor.value, rel=1e-6)


def test_the_common_fit_is_that_of_an_independent_optimiser() -> None:
    """Log-sum-exp and L-BFGS from many starts, as is usual, on the same sum of Huber terms."""
    fits = fitted(EARLY, 0.002, 1), fitted(variant(1.5, 1.2), 0.002, 4)
    problem, _ = _together(fits)
    ours = search(problem)
    group = np.repeat([0, 1], [len(fit.used) for fit in fits])
    runs = [run for fit in fits for run in fit.used]
    log_N, log_D, log_loss = (np.log([getattr(run, key) for run in runs]) for key in ("N", "D", "loss"))

    def objective(p: np.ndarray) -> float:
        terms = [np.full(len(runs), p[0]), p[1 + group] - p[5] * log_N, p[3 + group] - p[6] * log_D]
        return 1e4 * float(huber(np.logaddexp.reduce(terms, axis=0) - log_loss, 1e-3).sum())

    rng, lowest = np.random.default_rng(0), np.inf
    for _ in range(12):
        start = np.r_[np.log(1.5), rng.uniform(3, 7, 2), rng.uniform(5, 9, 2), rng.uniform(0.2, 0.5, 2)]
        lowest = min(lowest, minimize(objective, start, method="L-BFGS-B", options={"maxiter": 5000}).fun / 1e4)
    assert ours.objective <= lowest * (1 + 1e-4)
    e, a, b = ours.raw[0], ours.raw[[1, 3]], ours.raw[[2, 4]]
    mine = objective(np.r_[np.log(e), np.log(a), np.log(b), ours.raw[5:]]) / 1e4
    assert mine == pytest.approx(ours.objective, rel=1e-6)


def test_equal_variants_cannot_be_told_apart() -> None:
    found = between(fitted(EARLY, 0.003, 3), fitted(EARLY, 0.003, 4))
    assert found.verdict == UNKNOWN and "these runs cannot tell" in found.sentence


def test_another_exponent_is_a_contradiction_and_the_multiplier_grows() -> None:
    found = between(fitted(EARLY, 0.001, 1), fitted(LATE, 0.001, 2))
    assert found.verdict == CONTRADICTED and found.probability < 0.001
    assert "do not share one E and one set of exponents" in found.sentence
    low, high = found.ends
    # The truth at both ends, by brute force.
    for end in (low, high):
        loss = best(LATE, end.compute)
        needed = np.exp(brentq(lambda x, loss=loss: best(EARLY, np.exp(x)) - loss, np.log(1e14), np.log(1e26)))
        assert end.factor.low < needed / end.compute < end.factor.high
    assert high.factor.low > low.factor.high


def test_without_two_laws_of_one_form_there_is_none() -> None:
    early, late = fitted(EARLY, 0.001, 1), fitted(LATE, 0.001, 2)
    found = between(replace(early, law=None), late)
    assert found.verdict == UNKNOWN and found.factor is None and "no law for base" in found.sentence
    line = replace(late, health=replace(late.health, splits=False))
    assert "the law of variant has no best size" in between(early, line).sentence
    other = replace(late, options={**late.options, "form": "tied"})
    assert "base has the form chinchilla and variant tied; fit both with one" in between(early, other).sentence


@pytest.mark.slow
def test_intervals_hold_the_multiplier_and_one_exponent_is_kept() -> None:
    """60 pairs of 30 runs each: with a true coverage of .95, 52 hits or fewer come once in a hundred times."""
    hits = kept = 0
    for seed in range(60):
        pair = fitted(EARLY, 0.003, 2 * seed, draws=200), fitted(variant(1.5, 1.2), 0.003, 2 * seed + 1, draws=200)
        found = between(*pair)
        assert found.factor is not None
        hits += found.factor.low <= 1.8 <= found.factor.high
        kept += found.verdict != CONTRADICTED
    print(f"the interval holds the multiplier in {hits}, one exponent is kept in {kept}, of 60")
    assert hits >= 53 and kept >= 52
