"""Writes the report: the figures as PNG files and one self-contained page that needs no network and no scripts."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reducible.tasks import words
from reducible.tasks.fit.confirmation import Confirmation
from reducible.tasks.fit.learning_rates import LearningRates
from reducible.tasks.fit.result import Fit, Run
from reducible.tasks.known_entropy import agreement
from reducible.tasks.report import intervals
from reducible.tasks.report.answer import answer
from reducible.tasks.report.figures import draw
from reducible.tasks.report.formulas import formula_html, greek, law_in_numbers
from reducible.tasks.report.questions import questions
from reducible.tasks.report.report_spec import ReportSpec
from reducible.tasks.report.scene import Curve, Figure


@dataclass(frozen=True)
class Report:
    """Where the page lies, and its figures in reading order."""

    path: Path
    figures: tuple[Figure, ...]


def write_report(
    fit: Fit,
    spec: ReportSpec,
    folder: Path,
    curves: Sequence[Curve] = (),
    provenance: Mapping[str, str] | None = None,
    confirmed: Sequence[Confirmation] = (),
    rates: LearningRates | None = None,
) -> Report:
    """Writes `folder`/report.html and `folder`/figures/*.png.

    curves: learning curves of the trainings. provenance: label -> value, printed as given (code, versions, dates).
    confirmed: runs that laws on these data have predicted, oldest first. rates: what the cells' searches found.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = draw(fit, folder / "figures", spec.unit, curves)
    shown = {figure.key: figure for figure in figures}
    found = answer(fit)
    content = {
        "fit": fit,
        "answer": found,
        "asked": questions(fit, found.best, spec),
        "runs": in_order(fit.runs),
        "figures": shown,
    }
    content |= {"confirmed": confirmed, "rates": rates}
    return Report(write_page("report.html", folder, spec, provenance, **content), tuple(figures))


def write_page(
    template: str, folder: Path, spec: ReportSpec, provenance: Mapping[str, str] | None, **content: Any
) -> Path:
    """Writes `folder`/report.html: the template with what every report shows, and with this content."""
    page = environment().get_template(template).render(
        spec=spec,
        provenance=dict(provenance or {}),
        units=f"{spec.unit}s",
        subject=shlex.quote(spec.predict),
        **content,
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@cache
def environment() -> Environment:
    # Names of runs, recipes and warnings come from users: everything is escaped unless this package wrote it.
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        words.number,
        words.exact,
        words.count,
        words.whole,
        words.power_of_ten,
        words.typed,
        words.percent,
        words.signed_percent,
        intervals.interval,
        intervals.with_interval,
        words.plural,
        words.upper_first,
        words.signed,
        words.with_powers,
    ):
        made.filters[write.__name__] = write
    made.filters["agreement"] = agreement
    made.filters["greek"], made.filters["formula_html"] = greek, formula_html
    made.filters["law_in_numbers"] = law_in_numbers
    made.filters["interval_of_counts"] = lambda estimate: intervals.interval(estimate, words.count)
    made.filters["interval_of_percents"] = lambda estimate: intervals.interval(estimate, words.percent)
    made.filters["interval_of_factors"] = lambda estimate: intervals.interval(estimate, lambda x: words.number(x, 3))
    made.filters["interval_of_compute"] = lambda estimate: intervals.interval(estimate, words.power_of_ten)
    made.filters["interval_of_differences"] = lambda estimate: intervals.interval(estimate, words.signed)
    made.filters["data_uri"] = _data_uri
    return made


def in_order(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=_order)


def _order(run: Run) -> tuple[bool, float, float]:
    """By budget, then size; a run that has no compute, because it never began, comes last."""
    C = run.budget or run.C
    return (True, 0.0, 0.0) if math.isnan(C) else (False, C, 0.0 if math.isnan(run.N) else run.N)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
