"""The report task: the fit and the trainings behind it in; report.html and figures/ out."""

from __future__ import annotations

import shutil

from tasks.fit.result import Fit
from tasks.fit.summary import summary
from tasks.record import Record
from tasks.report.curves import curves_of
from tasks.report.page import write_report
from tasks.report.provenance import provenance
from tasks.report.spec import ReportSpec
from tasks.task import Context


def run(context: Context) -> None:
    """Inputs: `fit`, and the train artifacts whose learning curves are shown; other artifacts are only named."""
    spec: ReportSpec = context.spec
    fit = Fit.load(context.inputs["fit"] / "fit.json")
    report = write_report(fit, spec, context.staging, curves_of(context.inputs), provenance(context.inputs))

    record = Record(context.staging / "record", context.attempt)
    parameters = spec.model_dump(mode="json", exclude={"recipe"})
    record.describe(
        "report", context.label, parameters, {**context.tags, "identified": str(fit.health.identified).lower()}
    )
    record.note(note(fit, spec))
    shutil.copy(report.path, record.files / "report.html")
    shutil.copytree(context.staging / "figures", record.figures, dirs_exist_ok=True)


def note(fit: Fit, spec: ReportSpec) -> str:
    """The summary as Markdown, for the run's note."""
    head = f"### {spec.title}\n\n{spec.description}\n" if spec.description else f"### {spec.title}\n"
    body = summary(fit) if fit.used else f"No run could be used. {fit.health.verdict}"
    return f"{head}\n```\n{body}\n```\n\nThe page `report.html` is among the artifacts.\n"
