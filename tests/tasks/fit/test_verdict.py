"""What the fit says of itself: three levels of E with reasons, and what speaks against the law as a whole."""

import math
import warnings

import numpy as np
import pandas
import pytest
from law_cases import ALPHA, QUICK, E, isoflop_design, problem_of_law, table_of, true_loss

from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Fit
from reducible.tasks.fit.search import search


def fit_of(N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> Fit:
    return fit_runs(pandas.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss}), QUICK)


def noisy(N: np.ndarray, D: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    return table_of(N, D, noise, seed)["loss"].to_numpy()


def test_a_good_design_is_identified_and_nothing_speaks_against_it() -> None:
    N, D = isoflop_design()
    health = fit_of(N, D, noisy(N, D, 0.003)).health
    assert health.level == "identified" and health.findings == () and health.advice == ""


def test_the_interval_of_E_is_the_wider_of_bootstrap_and_profile_on_each_side() -> None:
    N, D = isoflop_design(3, 5)
    fit = fit_of(N, D, noisy(N, D, 0.003))
    assert fit.law is not None and fit.profile is not None
    one, other = fit.profile.interval, fit.profile.bootstrap
    assert (fit.law.E.low, fit.law.E.high) == (min(one.low, other.low), max(one.high, other.high))


def test_noise_alone_is_not_taken_for_a_form_that_does_not_hold() -> None:
    """None of twenty, also with noise that shrinks tenfold, and with tails."""
    N, D = isoflop_design(5, 6)
    rng = np.random.default_rng(0)
    fall = 0.015 * 0.1 ** (np.log(N * D / (N * D).min()) / np.ptp(np.log(N * D)))
    for _ in range(10):
        for error in (fall * rng.normal(size=30), 0.003 * rng.standard_t(3, size=30)):
            assert fit_of(N, D, true_loss(N, D) * np.exp(error)).health.findings == ()


def test_few_degrees_of_freedom_are_weak() -> None:
    N, D = (column[:7] for column in isoflop_design(3, 3))
    health = fit_of(N, D, noisy(N, D, 0.0005)).health
    assert health.level == "weakly identified"
    assert "7 runs leave two beyond the five parameters" in health.verdict


def test_an_interval_as_wide_as_the_loss_that_is_left_is_weak_and_the_advised_run_narrows_it() -> None:
    N, D = isoflop_design(3, 5, 1e17, 1e19)
    table = table_of(N, D, 0.012, seed=3)
    fit = fit_runs(table, QUICK)
    assert fit.law is not None
    assert (
        fit.health.level == "weakly identified"
        and "times the loss above E that the best run has left" in fit.health.verdict
    )
    assert fit.health.advice.startswith("the run that would tell most about E: N = ")
    text = summary(fit)
    assert "weakly identified" in text and fit.health.advice[4:30] in text


def test_runs_along_a_line_and_one_off_it_are_not_identified_with_a_word_on_the_size() -> None:
    """Twelve runs at D/N = 20 and one at 400 were called identified, with N* from 4.6e3 to 6.5e17."""
    for seed in range(5):
        N = np.sqrt(np.geomspace(1e17, 1e21, 12) / 120)
        N, D = np.r_[N, N[5]], np.r_[20 * N, 400 * N[5]]
        assert fit_of(N, D, noisy(N, D, 0.003, seed)).health.level != "identified"


def test_loss_that_does_not_fall_is_said_without_a_warning_of_numpy() -> None:
    N, D = isoflop_design(4, 5)
    falling = true_loss(N, D)
    flat = 2 * np.exp(0.003 * np.random.default_rng(0).normal(size=20))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for loss in (falling[::-1].copy(), flat, np.full(20, 2.0)):
            fit = fit_of(N, D, loss)
            assert fit.health.level == "not identified"
            assert any("the loss does not fall with compute" in text for text in fit.health.findings)
            best = best_loss(fit)
            assert best is None or math.isfinite(best.exponent(fit.largest_compute).value)
            summary(fit)


def test_perplexity_given_as_loss_and_two_families_in_one_table_do_not_hold() -> None:
    N, D = isoflop_design()
    loss = noisy(N, D, 0.003)
    pooled = loss * np.where(np.arange(35) % 2, 1.12, 1.0)
    for wrong in (np.exp(loss), pooled):
        health = fit_of(N, D, wrong).health
        assert health.level != "identified"
        assert "does not hold here: the runs lie" in health.findings[0]


def test_a_bend_that_the_form_cannot_follow_is_named() -> None:
    N, D = isoflop_design()
    bent = noisy(N, D, 0.001) * np.exp(0.01 * np.log(N / np.median(N)) ** 2 / 4)
    health = fit_of(N, D, bent).health
    assert health.level != "identified" and any("a bend along log" in text for text in health.findings)


def test_two_readings_of_the_best_size_that_disagree_are_said() -> None:
    """The budgets' minima move as C^.5; a law whose exponents say C^.8 is fitted to the same table by force."""
    N, D = isoflop_design(4, 7)
    C = 6 * N * D
    best = 0.2 * (C / 6) ** 0.8 * 1e-5
    loss = 1.8 + 30 * C**-0.1 + 0.02 * np.log(N / np.sqrt(C / 120)) ** 2 * (1 + 0 * best)
    fit = fit_of(N, D, loss * np.exp(0.001 * np.random.default_rng(0).normal(size=28)))
    assert fit.allocation is not None and fit.isoflop is not None
    apart = fit.allocation.a.high < fit.isoflop.a.low or fit.isoflop.a.high < fit.allocation.a.low
    assert apart == any("two ways of reading N* disagree" in text for text in fit.health.findings)


@pytest.mark.parametrize("beta", [4.5, 6.0])
def test_an_exponent_at_its_bound_is_no_result(beta: float) -> None:
    N, D = [v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e7, 3e7, 5))]
    loss = 1.8 + 400 * N**-ALPHA + (D / 1e7) ** -beta
    health = fit_of(N, D, loss).health
    assert health.level != "identified" and any("beta = 4, a bound" in text for text in health.findings)


def test_one_outlier_does_not_own_the_interval_of_a_predicted_loss() -> None:
    N, D = isoflop_design(5, 6)
    table = table_of(N, D, 0.002)
    calm = predict(fit_runs(table, QUICK), compute=1e22).loss
    table.loc[7, "loss"] *= 1.3
    fit = fit_runs(table, QUICK)
    wild = predict(fit, compute=1e22).loss
    assert wild.high - wild.low < 2 * (calm.high - calm.low)
    assert any("not in the noise of a predicted loss" in text for text in fit.health.warnings)


def test_every_optimum_is_at_rest() -> None:
    """Runs without noise, coarse losses, a valley along one line, rising loss, E at 0: none stops on its way."""
    line = np.sqrt(np.geomspace(1e17, 1e21, 12) / 120)
    designs = [isoflop_design(), isoflop_design(3, 3), (line, 20 * line)]
    for N, D in designs:
        for loss in (
            true_loss(N, D),
            np.round(true_loss(N, D), 2),
            noisy(N, D, 0.003),
            noisy(N, D, 0.05),
            true_loss(N, D)[::-1].copy(),
            true_loss(N, D) - E,
        ):
            assert search(problem_of_law(N, D, loss), grid=8).gradient < 1e-6
