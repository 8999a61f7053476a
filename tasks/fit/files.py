"""Runs from a CSV file, and a fit to files: `reducible fit runs.csv`."""

from __future__ import annotations

import math
from pathlib import Path

import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.result import Fit

NUMBERS = ("N", "D", "C", "loss")
OPTIONAL = ("name", "budget", "seed", "status", "reason", "learning_rate", "N_without_embeddings")


def read_runs(path: Path) -> tuple[pandas.DataFrame, tuple[str, ...]]:
    """The table, and notes on it for the reader. Raises UserError naming row and column.

    A loss may be empty, nan or inf if the run has a status other than finished: such a run is excluded by name.
    """
    try:
        table = pandas.read_csv(path, dtype=str, skipinitialspace=True, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a CSV file with the columns N, D, C, loss") from None
    except (OSError, UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise UserError(f"{path} cannot be read as CSV ({str(error).strip()})") from None
    table.columns = [str(column).strip() for column in table.columns]
    for column in ("N", "D", "loss"):
        if column not in table.columns:
            raise UserError(f"{path} lacks the column {column}; it needs N, D, loss and has {', '.join(table.columns)}")
    if not len(table):
        raise UserError(f"{path} has no rows: one row per training run is needed")
    for column in (*NUMBERS, "budget", "seed", "learning_rate", "N_without_embeddings"):
        if column in table.columns:
            table[column] = [_number(path, table, row, column) for row in range(len(table))]
    notes: tuple[str, ...] = ()
    if "C" not in table.columns:
        table["C"] = 6 * table["N"] * table["D"]
        notes = ("C is not in the table and is taken as 6ND: give it if embeddings or attention cost much",)
    return table[[c for c in (*OPTIONAL[:1], *NUMBERS, *OPTIONAL[1:]) if c in table.columns]], notes


def _number(path: Path, table: pandas.DataFrame, row: int, column: str) -> float:
    text = str(table[column].iloc[row]).strip()
    status = str(table["status"].iloc[row]).strip() if "status" in table.columns else ""
    where = f"{path}, row {row + 2}, column {column}"  # row 1 is the header, as editors count
    required = column in NUMBERS and status in ("", "finished")
    if not text and (not required):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is not a number; write it like 1.5e9") from None
    if column == "seed":
        if not value.is_integer():
            raise UserError(f"{where}: {text} is not a whole number")
    elif column != "loss" and not (math.isfinite(value) and value > 0) and required:
        raise UserError(f"{where}: {text} must be a positive number")
    elif column == "loss" and value <= 0 and required:
        raise UserError(f"{where}: {text} must be positive, in nats per target unit")
    return value


def fit_csv(path: Path, folder: Path, options: FitOptions | None = None) -> Fit:
    """Fits a CSV file and writes fit.json, runs.csv and summary.txt into `folder`."""
    table, notes = read_runs(path)
    fit = fit_runs(table, options, notes)
    folder.mkdir(parents=True, exist_ok=True)
    write_fit(fit, folder)
    (folder / "summary.txt").write_text(summary(fit) + "\n")
    return fit


def write_fit(fit: Fit, folder: Path) -> None:
    """Writes fit.json, and runs.csv: every run with its part in the fit."""
    fit.save(folder / "fit.json")
    columns = ("name", "N", "D", "C", "loss", "budget", "seed", "status", "used", "reason", "fitted", "residual")
    rows = [{column: getattr(run, column) for column in columns} for run in fit.runs]
    pandas.DataFrame(rows, columns=list(columns)).to_csv(folder / "runs.csv", index=False)
