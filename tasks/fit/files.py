"""A fit from a table of runs to files: `reducible fit TABLE`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import AUTO, FitOptions
from reducible.tasks.fit.fit_summary import families_summary, summary
from reducible.tasks.fit.laws.registry import form_named
from reducible.tasks.fit.overtaking import Comparison, compare
from reducible.tasks.fit.repeats import UNIQUE, repeated
from reducible.tasks.fit.result import Fit
from reducible.tasks.fit.run_table import RunTable
from reducible.tasks.words import plural

BESIDE = ("comparison.json", "summary.txt", "report.html", "figures")
"""Names in the folder that holds those of the families."""


def fit_table(runs: RunTable, folder: Path, options: FitOptions | None = None) -> Fit:
    """One law for all runs: writes fit.json, runs.csv and summary.txt into `folder`."""
    fit = _fit(runs, runs.table, options or FitOptions())
    folder.mkdir(parents=True, exist_ok=True)
    write_fit(fit, folder)
    _write_text(folder / "summary.txt", [*runs.remarks, summary(fit)])
    return fit


def fit_families(
    runs: RunTable, folder: Path, options: FitOptions | None = None
) -> tuple[dict[str, Fit], Comparison, dict[str, str]]:
    """A law for each family, their comparison, and the reason of each family that has none.

    Writes FAMILY/fit.json and FAMILY/runs.csv for each, and comparison.json and summary.txt.
    """
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys(runs.families):
        mine = runs.table[[family == name for family in runs.families]].reset_index(drop=True)
        try:
            fits[name] = _fit(runs, mine, options or FitOptions())
        except UserError as error:
            refused[name] = str(error)
    if not fits:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    for name, fit in fits.items():
        own = family_folder(folder, name)
        own.mkdir(parents=True, exist_ok=True)
        write_fit(fit, own)
    comparison = compare(fits)
    text = json.dumps(comparison.to_dict(), indent=1, allow_nan=False)
    (folder / "comparison.json").write_text(text + "\n")
    reasons = [f"no law for {name}: {reason}" for name, reason in refused.items()]
    _write_text(folder / "summary.txt", [*runs.remarks, families_summary(fits, comparison), *reasons])
    return fits, comparison, refused


def family_folder(folder: Path, family: str) -> Path:
    """Where a family's fit lies: a folder of its name.

    Signs that a file's name cannot hold become dashes, and a part of its hash then tells the family from others.
    """
    name = re.sub(r"[^\w.+=-]+", "-", family).strip(".")
    if name != family or name in BESIDE:
        name = f"{name}-{hashlib.sha256(family.encode()).hexdigest()[:6]}"
    return folder / name


def write_fit(fit: Fit, folder: Path) -> None:
    """Writes fit.json, and runs.csv: every run with its part in the fit."""
    fit.save(folder / "fit.json")
    columns = ["name", "N", "D", "C", "loss", "budget", "seed", "status", "used", "reason", "fitted", "residual"]
    columns += [known for known in ("unique_tokens", "weight") if any(getattr(run, known) for run in fit.runs)]
    rows = [{column: getattr(run, column) for column in columns} for run in fit.runs]
    pandas.DataFrame(rows, columns=columns).to_csv(folder / "runs.csv", index=False)


def _fit(runs: RunTable, table: pandas.DataFrame, options: FitOptions) -> Fit:
    known = options.form == AUTO or UNIQUE in form_named(options.form).columns
    if UNIQUE in table and not known and (many := int(repeated(table["D"], table[UNIQUE]).sum())):
        raise UserError(
            f"{plural(many, 'run')} of {len(table)} repeat their data (D is above unique_tokens), which the form "
            f"{options.form} does not know; --form data-constrained does, and --ignore {UNIQUE} fits them alike"
        )
    return fit_runs(table, options.model_copy(update={"counts": runs.counts}), runs.notes)


def _write_text(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
