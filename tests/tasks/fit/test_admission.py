"""Runs that may not enter a fit are left out by name, each with its reason."""

import math

import pandas
import pytest

from reducible.tasks.errors import UserError
from reducible.tasks.fit.admission import admit


def rows(*changes: dict[str, object]) -> pandas.DataFrame:
    base = {"N": 1e6, "D": 1e8, "C": 6e14, "loss": 3.0}
    return pandas.DataFrame([base | {"name": f"run-{i}"} | change for i, change in enumerate(changes)])


def reasons(table: pandas.DataFrame) -> dict[str, str | None]:
    return {run.name: run.reason for run in admit(table) if not run.used}


def test_unfit_runs_are_named() -> None:
    table = rows(
        {"N": 1e5},
        {"N": 2e5, "status": "diverged", "reason": "loss exploded at step 40", "loss": math.nan},
        {"N": 3e5, "status": "unfinished"},
        {"N": 4e5, "loss": math.nan},
        {"N": 5e5, "loss": math.inf},
        {"N": math.nan, "D": 1e8},
        {"N": 6e5, "C": -1.0},
        {"N": 7e5, "status": "finished"},
    )
    assert reasons(table) == {
        "run-1": "diverged: loss exploded at step 40",
        "run-2": "unfinished",
        "run-3": "loss is nan: the law needs a positive, finite loss",
        "run-4": "loss is inf: the law needs a positive, finite loss",
        "run-5": "N is nan: it must be a positive number",
        "run-6": "C is -1: it must be a positive number",
    }


def test_order_and_values_stay() -> None:
    runs = admit(rows({"N": 1e5, "budget": 1e15, "seed": 3}, {"N": 2e5}))
    assert [run.name for run in runs] == ["run-0", "run-1"]
    assert runs[0].budget == 1e15 and runs[0].seed == 3 and runs[1].budget is None


def test_the_best_of_one_cell_stays() -> None:
    table = rows({"loss": 3.1}, {"loss": 3.0}, {"loss": 3.2})
    assert set(reasons(table)) == {"run-0", "run-2"}
    assert "same N, D and seed as run-1" in str(reasons(table)["run-0"])


def test_seeds_are_replicates() -> None:
    assert reasons(rows({"loss": 3.1, "seed": 0}, {"loss": 3.0, "seed": 1})) == {}


def test_only_the_best_learning_rate_of_a_cell_stays() -> None:
    table = rows(
        {"loss": 3.05, "seed": 0, "learning_rate": 1e-3},
        {"loss": 3.15, "seed": 1, "learning_rate": 1e-3},
        {"loss": 3.00, "seed": 0, "learning_rate": 3e-3},
        {"loss": 3.40, "seed": 1, "learning_rate": 3e-3},
        {"N": 2e6, "loss": 2.9, "seed": 0, "learning_rate": 3e-3},
    )
    assert set(reasons(table)) == {"run-2", "run-3"}  # the lowest single loss is not the lowest mean
    assert reasons(table)["run-2"] == "learning rate 0.003 is not the best of this (N, D): 0.001 is"


def test_equal_names_are_told_apart() -> None:
    assert [run.name for run in admit(rows({"name": "a"}, {"name": "a", "N": 2e6}))] == ["a", "a (2)"]


def test_which_N_is_counted() -> None:
    table = rows({"N_without_embeddings": 8e5})
    assert admit(table)[0].N == 1e6
    assert admit(table, "parameters_without_embeddings")[0].N == 8e5


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UserError, match="lacks the column loss; it has N, D, C"):
        admit(pandas.DataFrame({"N": [1], "D": [1], "C": [1]}))
