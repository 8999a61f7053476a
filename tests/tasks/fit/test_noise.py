"""The noise of runs, also where the runs of a cell share it; and the run that would tell most."""

import numpy as np
import pytest
from law_cases import ALPHA, BETA, A, B, E, isoflop_design, problem_of_law, table_of

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.registry import FORMS
from reducible.tasks.fit.next_run import covariance, most_telling, slopes
from reducible.tasks.fit.noise import cell_noise, deviation
from reducible.tasks.fit.search import search

TRUTH = np.array([E, A, B, ALPHA, BETA])


def test_noise_that_a_cell_shares_does_not_average_out() -> None:
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(4000), 3)
    shared = 0.005 * rng.normal(size=4000)[cell] + 0.003 * rng.normal(size=12_000)
    own = 0.003 * rng.normal(size=12_000)
    mean_shared, mean_own = np.sqrt(0.005**2 + 0.003**2 / 3), 0.003 / np.sqrt(3)
    assert cell_noise(shared, cell, 5)[0] / np.sqrt(3) == pytest.approx(mean_shared, rel=0.05)
    assert cell_noise(own, cell, 5)[0] / np.sqrt(3) == pytest.approx(mean_own, rel=0.05)
    assert cell_noise(own, cell, 5)[1] == 3995


def test_tails_count_and_one_outlier_does_not() -> None:
    rng = np.random.default_rng(1)
    tails = rng.standard_t(5, size=20_000)
    cell = np.arange(20_000)
    assert cell_noise(tails, cell, 0)[0] > 1.15 * deviation(tails, 0)
    calm = rng.normal(size=30)
    wild = np.r_[calm[:-1], 1000.0]
    assert cell_noise(wild, np.arange(30), 5)[0] < 2.5 * cell_noise(calm, np.arange(30), 5)[0]


@pytest.mark.parametrize("form", [form for form in FORMS.values() if set(form.columns) <= {"N", "D", "C"}])
def test_slopes_predict_what_a_small_change_does(form) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    N, D = isoflop_design(3, 4)
    columns = {name: {"N": N, "D": D, "C": 6 * N * D}[name] for name in form.columns}
    theta = np.array([1.8, *([50.0] * len(form.coefficients)), *([0.2] * (form.size - 1 - len(form.coefficients)))])
    J = slopes(form, theta, columns)
    change = 1e-6 * rng.normal(size=form.size)
    moved = theta.copy()
    moved[0] += change[0] * float(np.mean(form.loss(theta, **columns)))
    k = 1 + len(form.coefficients)
    moved[1:k] *= np.exp(change[1:k])
    moved[k:] += change[k:]
    actual = np.log(form.loss(moved, **columns) / form.loss(theta, **columns))
    np.testing.assert_allclose(J @ change, actual, rtol=0.01, atol=1e-9)


def test_covariance_is_that_of_refits() -> None:
    N, D = isoflop_design(4, 6)
    losses = (table_of(N, D, 0.002, seed)["loss"].to_numpy() for seed in range(40))
    E_values = [search(problem_of_law(N, D, loss, np.inf), grid=4).raw[0] for loss in losses]
    unit = float(np.mean(CHINCHILLA.loss(TRUTH, N=N, D=D)))
    expected = unit * np.sqrt(covariance(CHINCHILLA, TRUTH, {"N": N, "D": D}, 0.002)[0, 0])
    assert np.std(E_values) == pytest.approx(expected, rel=0.35)  # of 40 draws


def test_the_most_telling_run_is_the_best_of_all_that_were_tried() -> None:
    N, D = isoflop_design(3, 4)
    columns, cost, noise = {"N": N, "D": D}, Cost(6.0, 0.0, 0.5, 0.0), 0.003
    found = most_telling(CHINCHILLA, TRUTH, columns, cost, 6 * N * D, noise)
    assert found is not None
    now = covariance(CHINCHILLA, TRUTH, columns, noise)[0, 0]
    left = []
    for n in np.geomspace(N.min() / 4, N.max() * 4, 14):
        for d in np.geomspace(D.min() / 4, D.max() * 4, 14):
            if 6 * n * d <= 1.05 * (6 * N * D).max():
                more = {"N": np.r_[N, n], "D": np.r_[D, d]}
                unit = np.mean(CHINCHILLA.loss(TRUTH, **columns)) / np.mean(CHINCHILLA.loss(TRUTH, **more))
                left.append((np.sqrt(covariance(CHINCHILLA, TRUTH, more, noise)[0, 0] / now) / unit, n, d))
    best = min(left)
    assert found[2] == pytest.approx(best[0], rel=0.05)


def test_nothing_is_advised_for_a_form_that_reads_other_columns() -> None:
    N, D = isoflop_design(3, 4)
    columns = {"N": N, "D": D, "unique_tokens": D}
    assert most_telling(CHINCHILLA, TRUTH, columns, Cost(6.0, 0.0, 0.5, 0.0), 6 * N * D, 0.003) is None
