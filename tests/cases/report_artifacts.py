"""Artifacts that a report is made of."""

import json
from pathlib import Path

from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import write_manifest


def committed(folder: Path, name: str, label: str = "") -> Path:
    described = {"task": name, "version": 1, "spec": {}, "inputs": {}}
    write_manifest(folder, described, identity=f"{name}-identity", label=label, attempt="a", started=0.0)
    return folder


def training(folder: Path, label: str, losses: dict[int, float | None], every: str = "val/loss") -> Path:
    """A train artifact of 100 steps of 1e9 FLOPs whose record holds `losses` by step."""
    record = Record(folder / "record", "a")
    for step, loss in losses.items():
        record.row(step, {"speed/units_per_second": 1.0} | ({} if loss is None else {every: loss}))
    result = {"status": "finished", "step": 100, "flops": 1e11, "parameters": 5000, "validation_loss": 2.0}
    (folder / "result.json").write_text(json.dumps(result))
    return committed(folder, "train", label)
