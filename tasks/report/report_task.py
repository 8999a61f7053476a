"""The report task: the fit and the trainings behind it in; report.html and figures/ out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from reducible.tasks.fit.confirmation import FILE, Confirmation
from reducible.tasks.fit.confirmation import metrics_of as confirmation_metrics
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.fit_task import metrics_of
from reducible.tasks.fit.learning_rates import LearningRates
from reducible.tasks.fit.result import Fit
from reducible.tasks.report.curves import curves_of
from reducible.tasks.report.page import write_report
from reducible.tasks.report.provenance import provenance
from reducible.tasks.report.report_spec import ReportSpec
from reducible.tasks.words import upper_first
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context


def run(context: Context) -> None:
    """Inputs: `fit`, and the train artifacts whose learning curves are shown; other artifacts are only named."""
    spec: ReportSpec = context.spec
    fit = Fit.load(context.inputs["fit"] / "fit.json")
    confirmed = [
        Confirmation.load(folder / FILE) for name, folder in context.inputs.items() if name.startswith("prediction-")
    ]
    report = write_report(
        fit,
        spec,
        context.staging,
        curves_of(context.inputs),
        provenance(context.inputs),
        tuple(confirmed),
        LearningRates.load(context.inputs["fit"]),
    )

    record = Record(context.staging / "record", context.attempt)
    parameters = spec.model_dump(mode="json", exclude={"recipe"})
    # The run of the report speaks for the whole sweep in MLflow.
    record.describe("sweep", f"sweep {spec.title}", parameters, {**context.tags, "identified": fit.health.level})
    # A chain of laws has predicted a run each; a table of sweeps shows the newest.
    last = {f"final/{key}": value for found in confirmed[-1:] for key, value in confirmation_metrics(found).items()}
    record.row(0, metrics_of(fit) | last)
    record.note(note(fit, spec, confirmed))
    shutil.copy(report.path, record.files / "report.html")
    shutil.copytree(context.staging / "figures", record.figures, dirs_exist_ok=True)


def note(fit: Fit, spec: ReportSpec, confirmed: Sequence[Confirmation] = ()) -> str:
    """The summary as Markdown, for the run's note. The law comes first: a page shows about three lines of it."""
    if not fit.used or fit.law is None:
        return f"**No law.** {fit.health.verdict}.\n\n{spec.description}\n"
    law = fit.law
    written = {name: f"{estimate.value:.4g}" for name, estimate in law.parameters.items()}
    written["E"] = f"{law.E}" if fit.health.bounded else "E (not identified by these runs)"
    head = f"**L{law.form.variables} = {' + '.join(law.form.terms(written))}**"
    page = "The page `report.html` is among the artifacts."
    held = "".join(f"{upper_first(found.sentence)}.\n\n" for found in confirmed)
    return f"{head}\n\n{held}{spec.description} {page}\n\n```\n{summary(fit)}\n```\n"
