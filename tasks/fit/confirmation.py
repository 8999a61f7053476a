"""Did the prediction hold: a run that a law recommended, beside what the law said of it before it was in the law."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reducible.tasks.fit.predict import predict_model
from reducible.tasks.fit.result import Estimate, Fit, plain, typed
from reducible.tasks.words import upper_first
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context

VERSION = 1  # of the task; a change of what it computes raises it
FILE = "confirmation.json"


@dataclass(frozen=True)
class Confirmation:
    """Losses in nats per target unit; the predicted interval holds the noise of one run."""

    name: str  # of the run
    law: str  # the name of the fit that predicted it
    N: float
    D: float
    C: float
    ratio: float  # C / the largest compute of the law's runs
    predicted: Estimate
    actual: float | None  # None: the training did not finish
    reason: str = ""  # why it did not
    warnings: tuple[str, ...] = ()  # of the prediction

    @property
    def held(self) -> bool | None:
        """Whether the loss lies in the interval; None if there is no loss, or no interval."""
        low, high = self.predicted.low, self.predicted.high
        if self.actual is None or math.isnan(low) or math.isnan(high):
            return None
        return low <= self.actual <= high

    @property
    def error(self) -> float | None:
        """The actual loss relative to the predicted one, less 1."""
        return None if self.actual is None else self.actual / self.predicted.value - 1

    @property
    def verdict(self) -> str:
        return {True: "held", False: "did not hold", None: "cannot be judged"}[self.held]

    @property
    def sentence(self) -> str:
        said = f"{self.law} predicted {self.predicted} for {self.name} ({self.ratio:.3g} times its largest run)"
        if self.actual is None or self.error is None:
            return f"{said}, which has no loss: {self.reason}"
        return f"the prediction {self.verdict}: {said}; it reached {self.actual:.4g} ({100 * self.error:+.2f} %)"

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        return {**content, "held": self.held, "error": self.error}

    @classmethod
    def load(cls, path: Path) -> Confirmation:
        content = json.loads(path.read_text())
        found: Confirmation = typed(cls, {key: value for key, value in content.items() if key not in ("held", "error")})
        return found


def confirmation(name: str, law: str, fit: Fit, result: dict[str, Any]) -> Confirmation:
    """The result.json of a training beside the prediction of a fit that does not contain it."""
    prediction = predict_model(fit, float(result[fit.counts]), float(result["units"]))
    finished = result["status"] == "finished" and result["validation_loss"] is not None
    return Confirmation(
        name=name,
        law=law,
        N=prediction.N,
        D=prediction.D,
        C=float(result["flops"]),
        ratio=float(result["flops"]) / fit.largest_compute,
        predicted=prediction.loss,
        actual=float(result["validation_loss"]) if finished else None,
        reason="" if finished else f"{result['status']}: {result.get('reason')}",
        warnings=prediction.warnings,
    )


class ConfirmationSpec(Frozen):
    """Identity of a confirmation; its inputs are the fit and the training."""

    name: str
    law: str


def run(context: Context) -> None:
    spec: ConfirmationSpec = context.spec
    fit = Fit.load(context.inputs["fit"] / "fit.json")
    result = json.loads((context.inputs["model"] / "result.json").read_text())
    found = confirmation(spec.name, spec.law, fit, result)
    (context.staging / FILE).write_text(json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    record = Record(context.staging / "record", context.attempt)
    held = {} if found.held is None else {"held": str(found.held).lower()}
    record.describe("prediction", context.label, {"law": spec.law, "run": spec.name}, {**context.tags, **held})
    record.row(0, {f"final/{key}": value for key, value in metrics_of(found).items()})
    record.note(note(found))


def metrics_of(found: Confirmation) -> dict[str, float]:
    """What MLflow shows of it; unknown figures are left out."""
    figures = {
        "predicted_loss": found.predicted.value,
        "predicted_loss_low": found.predicted.low,
        "predicted_loss_high": found.predicted.high,
        "validation_loss": found.actual,
        "prediction_error": found.error,
        "prediction_held": None if found.held is None else float(found.held),
    }
    return {key: value for key, value in figures.items() if value is not None and math.isfinite(value)}


def note(found: Confirmation) -> str:
    """As Markdown; the sentence comes first, as a page shows about three lines."""
    low, high = found.predicted.low, found.predicted.high
    actual = "none" if found.actual is None else f"{found.actual:.4f}"
    error = "" if found.error is None else f"{100 * found.error:+.2f} %"
    lines = [f"**{upper_first(found.sentence)}.**", ""]
    lines += [
        "| N | D | FLOPs | predicted | 95 % interval | actual | error | held |",
        "|---:|---:|---:|---:|---|---:|---:|---|",
    ]
    lines.append(
        f"| {found.N:,.0f} | {found.D:,.0f} | {found.C:.3g} | {found.predicted.value:.4f} | {low:.4f} to {high:.4f} "
        f"| {actual} | {error} | {found.verdict} |"
    )
    return "\n".join([*lines, "", *(f"- {text}" for text in found.warnings)])
