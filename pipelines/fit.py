"""`reducible fit TABLE`: the fit and its report for any table of runs, whatever trained them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reducible.tasks.errors import UserError

if TYPE_CHECKING:
    from reducible.tasks.fit.fit_spec import FitOptions
    from reducible.tasks.fit.run_table import RunTable, TableOptions


def list_forms() -> None:
    """Prints a line for each form of a law that `--form` takes."""
    from reducible.tasks.fit.laws.registry import FORMS

    for form in FORMS.values():
        click.echo(f"{form.name:17} {form.formula}   ({form.source[0]})")
    click.echo(f"{'auto':17} the form that predicts best by back-test")


def fit_command(
    location: str,
    folder: Path | None,
    options: TableOptions,
    asked: FitOptions,
    price: float | None = None,
    device_flops: str | None = None,
) -> None:
    """Writes fit.json, runs.csv, report.html and figures into `folder` and prints the law.

    With families: a folder for each, and one report that compares them. price: of a device-hour, for the report;
    device_flops: the FLOP/s that a device reaches.
    """
    from reducible.pipelines.predict import positive
    from reducible.tasks.fit.fit_spec import AUTO
    from reducible.tasks.fit.laws.registry import form_named
    from reducible.tasks.fit.run_table import read_runs

    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is not a folder")
    money = {"price": price, "device_flops": device_flops and positive("--device-flops", device_flops)}
    if price is not None and device_flops is None:
        raise UserError("--price: a table does not say how fast a device is; add --device-flops, such as 4e14")
    runs = read_runs(location, options, () if asked.form == AUTO else form_named(asked.form).columns)
    for remark in runs.remarks:
        click.echo(remark)
    folder = folder or folder_beside(location, options.experiment)
    page, fit = (_families if runs.families else _one)(runs, location, folder, asked, money)
    click.echo(f"\n  report   {page}\n  predict  reducible predict {fit} --compute 1e21")


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """N=params of an option that may be repeated, as a mapping."""
    found = {}
    for value in values:
        left, sign, right = value.partition("=")
        if not (left.strip() and sign and right.strip()):
            raise UserError(f"{option} {value}: must be like {option} N=params")
        found[left.strip()] = right.strip()
    return found


def scales(values: Sequence[str]) -> dict[str, float]:
    """N=1e6 of --scale as numbers."""
    from reducible.tasks.fit.numerals import number

    found = {}
    for role, text in pairs(values, "--scale").items():
        factor = number(text, count=True)
        if factor is None or not 0 < factor < float("inf"):
            raise UserError(f"--scale {role}={text}: must be a number above 0, such as --scale {role}=1e6")
        found[role] = factor
    return found


def _one(
    runs: RunTable, location: str, folder: Path, options: FitOptions, money: Mapping[str, Any]
) -> tuple[Path, str]:
    from reducible.tasks.fit.files import fit_table
    from reducible.tasks.fit.fit_summary import summary
    from reducible.tasks.report.page import write_report
    from reducible.tasks.report.provenance import provenance
    from reducible.tasks.report.report_spec import ReportSpec

    fit = fit_table(runs, folder, options)
    spec = ReportSpec(title=_title(location), predict=str(folder / "fit.json"), **money)
    page = write_report(fit, spec, folder, provenance=provenance()).path
    click.echo(summary(fit))
    return page, shlex.quote(str(folder / "fit.json"))


def _families(
    runs: RunTable, location: str, folder: Path, options: FitOptions, money: Mapping[str, Any]
) -> tuple[Path, str]:
    from reducible.tasks.fit.files import fit_families
    from reducible.tasks.fit.fit_summary import families_summary
    from reducible.tasks.report.provenance import provenance
    from reducible.tasks.report.report_spec import FamiliesReportSpec
    from reducible.tasks.report.several_families import write_families_report

    fits, comparison, refused = fit_families(runs, folder, options)
    spec = FamiliesReportSpec(
        title=_title(location),
        predict=str(folder),
        families=tuple(fits),
        declared=tuple(dict.fromkeys(runs.families)),
        **money,
    )
    page = write_families_report(fits, comparison, spec, folder, provenance=provenance()).path
    click.echo(families_summary(fits, comparison))
    for name, reason in refused.items():
        click.secho(f"no law for {name}: {reason}", fg="red", err=True)
    return page, f"{shlex.quote(str(folder))} --family {shlex.quote(next(iter(fits)))}"


def _title(location: str) -> str:
    return Path(location.rstrip("/")).stem


def folder_beside(location: str, experiment: str | None) -> Path:
    """Beside a file; for a tracking URI, in the current folder."""
    path = Path(location)
    name = (
        re.sub(r"[^\w.+=-]+", "-", experiment or path.stem).strip("-") if experiment or not path.exists() else path.stem
    )
    return (path.with_name if path.exists() and path.name else Path)(f"{name or 'mlflow'}-fit")
