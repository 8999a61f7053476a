"""Best learning rates: those at an edge are said, and their law is the truth's if there are enough searches."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reducible.tasks.fit.learning_rates import LearningRates, Search, learning_rates, search_of

RATES = [float(rate) for rate in np.geomspace(1e-3, 1e-1, 9)]
CELLS = [(N, C / 6 / N) for C in (1e10, 4e10, 1.6e11) for N in (2e3, 4e3, 8e3, 1.6e4)]


def truth(N: float, D: float) -> float:
    return 0.012 * (N / 5e3) ** -0.22 * (D / 1e6) ** -0.14


def result(best: float, rates: list[float] = RATES) -> dict[str, Any]:
    """A search whose losses are a parabola in log rate."""
    trials = [[rate, 3 + 0.1 * math.log(rate / best) ** 2] for rate in rates]
    return {"learning_rate": min(trials, key=lambda trial: trial[1])[0], "trials": trials}


def found(best: float, N: float = 5e3, D: float = 1e6, label: str = "a cell") -> Search:
    return search_of(label, N, D, 512, result(best))


def test_the_best_between_two_rates_is_the_parabola_s() -> None:
    one = found(0.0123).rate
    assert one.between == pytest.approx(0.0123) and one.tried in RATES and not one.edge
    assert one.step == pytest.approx(math.log(100) / 8)


def test_a_diverged_neighbour_leaves_the_best_of_the_grid() -> None:
    trials = result(0.0123)
    trials["trials"][RATES.index(trials["learning_rate"]) + 1][1] = None
    assert search_of("a", 5e3, 1e6, 512, trials).rate.between == pytest.approx(trials["learning_rate"])


def test_a_best_at_the_edge_is_said_with_what_to_widen() -> None:
    rates = learning_rates([found(5e-4, label="small"), found(0.01), found(0.4, label="large")])
    assert [search.label for search in rates.at_edge] == ["small", "large"]
    assert "the best learning rate is the lowest that was tried in 1 search of 3 (small)" in rates.edge_sentence
    assert "sweep.learning_rate.low must be lower" in rates.edge_sentence
    assert "(large): sweep.learning_rate.high must be higher" in rates.edge_sentence
    assert rates.law is None and "2 of 3 searches ended at the edge" in rates.law_sentence


def test_the_law_of_exact_searches_is_the_truth() -> None:
    rates = learning_rates([found(truth(N, D), N, D) for N, D in CELLS])
    assert rates.law is not None and rates.edge_sentence == ""
    assert rates.law.exponents["N"].value == pytest.approx(-0.22) and rates.law.exponents["D"].value == pytest.approx(
        -0.14
    )
    assert rates.law.at(3e5, 1e8).value == pytest.approx(truth(3e5, 1e8))
    near, far = rates.law.at(5e3, 1e6), rates.law.at(5e6, 1e9)
    assert near.low < near.value < near.high and far.high / far.low > near.high / near.low


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Best rates that scatter by a factor of 1.3, as with noisy losses; 300 sweeps of 12 searches."""
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for _ in range(300):
        searches = [found(truth(N, D) * math.exp(0.26 * rng.normal()), N, D) for N, D in CELLS]
        law = learning_rates(searches).law
        assert law is not None
        at = law.at(3e5, 1e8)
        hits += [
            law.exponents["N"].low <= -0.22 <= law.exponents["N"].high,
            law.exponents["D"].low <= -0.14 <= law.exponents["D"].high,
            at.low <= truth(3e5, 1e8) <= at.high,
        ]
    assert (hits >= 0.92 * 300).all() and (hits <= 0.99 * 300).all(), hits


def test_a_grid_so_coarse_that_all_agree_still_has_an_interval() -> None:
    law = learning_rates([found(0.01, N, D) for N, D in CELLS]).law
    assert law is not None and law.exponents["N"].low < 0 < law.exponents["N"].high


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (CELLS[:5], "5 searches inside the grid, and at least 6 are needed"),
        ([(5e3, 1e6)] * 8, "neither N nor D has 3 values over a factor of 2"),
    ],
)
def test_too_few_or_too_like_searches_give_no_law(cells: list[tuple[float, float]], reason: str) -> None:
    rates = learning_rates([found(truth(N, D), N, D) for N, D in cells])
    assert rates.law is None and rates.reason == reason


def test_along_one_line_there_is_one_power() -> None:
    cells = [(N, 20 * N) for N in np.geomspace(1e3, 1e5, 8)]
    law = learning_rates([found(truth(N, D), N, D) for N, D in cells]).law
    assert law is not None and law.variables == ("N",)
    assert law.exponents["N"].value == pytest.approx(-0.36)


def batched(N: float, D: float, best: float, factors: tuple[float, ...] = (0.25, 0.5, 2, 4)) -> Search:
    """A search that also tries other batches: at each, the best rate goes with its root, and the loss is a parabola."""

    def trials(batch: float) -> list[list[float]]:
        rate = truth(N, D) * math.sqrt(batch / 512)
        above = 0.02 * math.log(batch / best) ** 2
        return [[one, 3 + above + 0.1 * math.log(one / rate) ** 2] for one in RATES]

    others = [[round(512 * factor), trials(512 * factor)] for factor in factors]
    return search_of("a cell", N, D, 512, {"learning_rate": 0.01, "trials": trials(512), "batches": others})


def best_batch(N: float, D: float) -> float:
    return 512 * (D / 1e6) ** 0.3


def test_batches_that_were_tried_have_a_law_of_their_own() -> None:
    rates = learning_rates([batched(N, D, best_batch(N, D)) for N, D in CELLS])
    assert rates.batch_law is not None and rates.law is not None
    assert rates.batch_law.exponents["D"].value == pytest.approx(0.3, abs=1e-3)
    assert rates.batch_law.exponents["N"].value == pytest.approx(0, abs=1e-3)
    assert rates.batch_law.at(1e5, 4e6).value == pytest.approx(best_batch(1e5, 4e6), rel=1e-2)
    assert rates.batch_sentence.startswith("best batch ~ N^")


def test_a_best_batch_at_the_edge_is_said_and_without_others_there_is_no_law() -> None:
    rates = learning_rates([batched(N, D, 1e5) for N, D in CELLS])
    assert "the best batch is the largest that was tried in 12 searches of 12" in rates.edge_sentence
    assert "sweep.learning_rate.batches must go higher" in rates.edge_sentence
    assert rates.batch_law is None and rates.law is not None
    alone = learning_rates([found(truth(N, D), N, D) for N, D in CELLS])
    assert "no law of the best batch: each cell has one batch" in alone.batch_sentence


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    rates = learning_rates([found(truth(N, D), N, D) for N, D in CELLS])
    assert LearningRates.load(tmp_path) is None
    rates.save(tmp_path)
    assert LearningRates.load(tmp_path) == rates
