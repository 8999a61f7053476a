"""Learning curves from train artifacts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.tasks.report.scene import Curve
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.store import read_manifest


def curves_of(inputs: Mapping[str, Path]) -> list[Curve]:
    """A curve for every input that is a training: of its validation loss, or of its training loss if no training
    measured the former more than once."""
    trainings = [path for path in inputs.values() if (path / "result.json").is_file() and (path / "record").is_dir()]
    for metric, kind in (("val/loss", "validation"), ("train/loss", "training")):
        curves = [_curve(path, metric, kind) for path in trainings]
        if any(len(curve.C) > 1 for curve in curves):
            return curves
    return []


def _curve(path: Path, metric: str, kind: str) -> Curve:
    result = json.loads((path / "result.json").read_text())
    # FLOPs are the same for every step, so a row's step tells its C whatever else the row holds.
    per_step = (result["flops"] or 0.0) / max(1, result["step"])
    points = {
        row["step"]: value
        for row in read_rows(path / "record")
        if (value := _finite(row["metrics"].get(metric))) is not None
    }
    if kind == "validation" and (final := _finite(result["validation_loss"])) is not None:
        points[result["step"]] = final
    steps = sorted(points)
    return Curve(
        name=str(read_manifest(path)["label"]),
        N=float(result["parameters"]),
        C=tuple(per_step * step for step in steps),
        loss=tuple(points[step] for step in steps),
        kind=kind,
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
