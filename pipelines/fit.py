"""`reducible fit runs.csv`: the fit and its report for any table of runs, whatever trained them."""

import shlex
from pathlib import Path

import click


def list_forms() -> None:
    """Prints a line for each form of a law that `--form` takes."""
    from reducible.tasks.fit.laws.registry import FORMS

    for form in FORMS.values():
        click.echo(f"{form.name:12} {form.formula}   ({form.source[0]})")


def fit_table(table: Path, folder: Path, draws: int, form: str) -> None:
    """Writes fit.json, runs.csv, report.html and figures into `folder` and prints the law."""
    from reducible.tasks.fit.files import fit_csv
    from reducible.tasks.fit.fit_spec import FitOptions
    from reducible.tasks.fit.fit_summary import summary
    from reducible.tasks.report.page import write_report
    from reducible.tasks.report.provenance import provenance
    from reducible.tasks.report.report_spec import ReportSpec

    fit = fit_csv(table, folder, FitOptions(form=form, bootstrap=draws))
    spec = ReportSpec(title=table.stem, predict=str(folder / "fit.json"))
    page = write_report(fit, spec, folder, provenance=provenance()).path
    click.echo(summary(fit))
    click.echo(
        f"\n  report   {page}\n  predict  reducible predict {shlex.quote(str(folder / 'fit.json'))} --compute 1e21"
    )
