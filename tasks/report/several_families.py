"""The report on several families: their comparison, then the fit of each one. Writes report.html and figures/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reducible.tasks.colours import family_colour
from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit_summary import families_summary
from reducible.tasks.fit.fit_task import metrics_of
from reducible.tasks.fit.learning_rates import LearningRates
from reducible.tasks.fit.overtaking import Comparison, Crossing, Overtaking
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.result import Fit, Prediction, Run
from reducible.tasks.report.answer import Answer, answer
from reducible.tasks.report.curves import curves_of
from reducible.tasks.report.family_figures import draw_families
from reducible.tasks.report.figures import draw
from reducible.tasks.report.page import Report, in_order, write_page
from reducible.tasks.report.provenance import provenance
from reducible.tasks.report.questions import Questions, questions
from reducible.tasks.report.report_spec import FamiliesReportSpec
from reducible.tasks.report.scene import Curve, Figure
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context


@dataclass(frozen=True)
class Member:
    """What the page shows of one family."""

    name: str
    anchor: str
    colour: str
    fit: Fit
    answer: Answer
    asked: Questions
    rates: LearningRates | None
    at_end: Prediction | None  # the best run of the largest budget
    runs: list[Run]
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Row:
    """A line of the table of overtakings."""

    pair: Overtaking
    verdict: str
    crossing: Crossing | None = None


def run(context: Context) -> None:
    """Inputs: `comparison`; for each family `NAME/fit` and, as NAME/..., the trainings whose curves are shown."""
    spec: FamiliesReportSpec = context.spec
    inputs = {name: _of_family(context.inputs, name) for name in spec.families}
    fits = {name: Fit.load(mine["fit"] / "fit.json") for name, mine in inputs.items()}
    comparison = Comparison.load(context.inputs["comparison"] / "comparison.json")
    curves = {name: curves_of(mine) for name, mine in inputs.items()}
    rates = {name: LearningRates.load(mine["fit"]) for name, mine in inputs.items()}
    origin = provenance(context.inputs)
    report = write_families_report(fits, comparison, spec, context.staging, curves, origin, rates)

    record = Record(context.staging / "record", context.attempt)
    least = min((fit.health for fit in fits.values()), key=lambda health: (health.bounded, health.identified))
    tags = {**context.tags, "identified": least.level}
    parameters = spec.model_dump(mode="json", exclude={"recipe"})
    record.describe("sweep", f"sweep {spec.title}", parameters, tags)  # it speaks for the whole sweep in MLflow
    record.row(0, {f"{name}/{key}": value for name, fit in fits.items() for key, value in metrics_of(fit).items()})
    record.note(note(fits, comparison, spec))
    shutil.copy(report.path, record.files / "report.html")
    shutil.copytree(context.staging / "figures", record.figures, dirs_exist_ok=True)


def write_families_report(
    fits: Mapping[str, Fit],
    comparison: Comparison,
    spec: FamiliesReportSpec,
    folder: Path,
    curves: Mapping[str, Sequence[Curve]] | None = None,
    provenance: Mapping[str, str] | None = None,
    rates: Mapping[str, LearningRates | None] | None = None,
) -> Report:
    """Writes `folder`/report.html, `folder`/figures/families-*.png, and each family's figures in figures/NAME."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    colours = {name: family_colour(index) for index, name in enumerate(spec.declared)}
    picture = draw_families(fits, comparison, colours, figures, spec.unit)
    ends = [fit.largest_compute for fit in fits.values() if fit.used]
    largest = max(ends, default=None)
    members = []
    for name, fit in fits.items():
        own = figures / name
        own.mkdir(exist_ok=True)
        found = answer(fit)
        drawn = draw(fit, own, spec.unit, (curves or {}).get(name, ()))
        members.append(
            Member(
                name=name,
                anchor="family-" + re.sub(r"[^\w-]", "-", name),
                colour=colours[name],
                fit=fit,
                answer=found,
                asked=questions(fit, found.best, spec),
                rates=(rates or {}).get(name),
                at_end=_predicted(fit, largest),
                runs=in_order(fit.runs),
                figures={figure.key: figure for figure in drawn},
            )
        )
    path = write_page(
        "families.html",
        folder,
        spec,
        provenance,
        comparison=comparison,
        rows=[row for pair in comparison.overtakings for row in _rows(pair)],
        members=members,
        exponents=list(dict.fromkeys(name for fit in fits.values() for name in fit.form.exponents)),
        formulas=list(dict.fromkeys(fit.form.formula for fit in fits.values())),
        fits=fits,
        lost=[name for name in spec.declared if name not in fits],
        picture=picture,
        largest=largest,
    )
    return Report(path, (picture, *(figure for member in members for figure in member.figures.values())))


def note(fits: Mapping[str, Fit], comparison: Comparison, spec: FamiliesReportSpec) -> str:
    """The summary as Markdown. What overtakes what comes first: a page shows about three lines of it."""
    head = ". ".join(pair.sentence for pair in comparison.overtakings)
    page = "The page `report.html` is among the artifacts."
    return f"**{head}.**\n\n{spec.description} {page}\n\n```\n{families_summary(fits, comparison)}\n```\n"


def _rows(pair: Overtaking) -> list[Row]:
    """The family that is ahead throughout, if any, then each crossing, except those below the tested range."""
    rows = []
    if pair.ahead is not None and pair.ahead_until is not None:
        rows.append(Row(pair, f"{pair.ahead} is ahead up to {pair.ahead_until:.3g}"))
    for one in pair.crossings:
        assert pair.tested is not None
        outside = not pair.tested[0] <= one.compute.value <= pair.tested[1]
        if one.sure:
            verdict = f"{one.overtaker} overtakes {one.overtaken}"
            rows.append(Row(pair, verdict + (", extrapolated" if outside else ""), one))
        elif pair.ahead is None or one.compute.value > pair.tested[0]:
            rows.append(Row(pair, f"cannot tell whether {one.overtaker} overtakes {one.overtaken}", one))
    return rows or [Row(pair, "cannot tell")]


def _of_family(inputs: Mapping[str, Path], name: str) -> dict[str, Path]:
    return {key.removeprefix(f"{name}/"): path for key, path in inputs.items() if key.startswith(f"{name}/")}


def _predicted(fit: Fit, compute: float | None) -> Prediction | None:
    try:
        return None if compute is None else predict(fit, compute=compute)
    except UserError:  # a fit without a law, or one that cannot split compute: the page says so in its place
        return None
