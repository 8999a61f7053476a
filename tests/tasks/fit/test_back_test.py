"""The error to quote: by how far a prediction reached, without the levels whose fits are no fits."""

import numpy as np
import pytest
from law_cases import QUICK, isoflop_design, table_of

from reducible.tasks.fit.back_test import by_ratio
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.result import BackTest


def test_errors_are_grouped_by_the_nearest_ratio_and_near_ones_are_none() -> None:
    ratios = (1.2, 1.5, 2.7, 3.0, 6.0, 6.5, 11.0, 31.0, 33.0, 900.0)
    errors = (0.5, -0.01, 0.03, 0.02, -0.04, 0.05, 0.01, 0.02, 0.08, -0.09)
    tests = [
        BackTest(1.0, f"run {ratio}", ratio, ratio, 1 + error, 1.0, error)
        for ratio, error in zip(ratios, errors, strict=True)
    ]
    found = {row.ratio: (row.predictions, round(row.median, 6), row.worst, row.worst_run) for row in by_ratio(tests)}
    assert found == {
        2.0: (2, 0.02, 0.03, "run 2.7"),
        4.0: (2, 0.03, 0.04, "run 6.0"),
        10.0: (3, 0.02, 0.05, "run 6.5"),
        100.0: (2, 0.085, 0.09, "run 900.0"),
    }


def test_errors_that_are_no_numbers_are_left_out() -> None:
    assert by_ratio([BackTest(1.0, "a", 2.0, 2.0, np.nan, 1.0, np.nan)]) == ()


def test_levels_with_too_few_runs_are_left_out_and_said() -> None:
    fit = fit_runs(table_of(*isoflop_design(5, 4), noise=0.002), QUICK)
    assert sorted({test.below for test in fit.back_tests}) == pytest.approx([1e18, 1e19, 1e20])
    assert len(fit.untested) == 1 and "the runs up to 10¹⁷ FLOPs" in fit.untested[0]
    few = fit_runs(table_of(*isoflop_design(2, 4), noise=0.002), QUICK)
    assert not few.back_tests and "4 runs at distinct (N, D) cannot carry five parameters" in few.untested[0]


def test_early_levels_do_not_own_the_error() -> None:
    """A table whose first level errs wildly: it is a curve through six runs, and no back-test."""
    N, D = isoflop_design(4, 6)
    table = table_of(N, D, 0.003, seed=4)
    fit = fit_runs(table, QUICK)
    assert all(row.worst < 0.05 for row in by_ratio(fit.back_tests))
