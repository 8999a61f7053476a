"""What a task records for people: parameters, metrics, a note, figures. These are plain files, without MLflow.

The driver projects these files into MLflow (tasks/mlflow/recorder.py). So losing the tracking server neither stops nor
slows a task, and everything in MLflow can be made again from the store.
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Record:
    """Writes a record folder. Each attempt of a task has its own metrics file, so that no two write the same one."""

    def __init__(self, folder: Path, attempt: str) -> None:
        self.folder = folder
        self.metrics_file = folder / f"metrics-{attempt}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def describe(
        self,
        kind: str,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        datasets: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """kind: train, evaluate, fit, report, sweep, run. Nested parameters are stored flat, under dotted names."""
        text = json.dumps(
            {
                "kind": kind,
                "name": name,
                "parameters": flatten(parameters),
                "tags": dict(tags or {}),
                "datasets": [dict(dataset) for dataset in datasets],
            },
            indent=1,
        )
        _write(self.folder / "describe.json", text)

    def row(self, step: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """One line of metrics at a step; time in ms since the epoch."""
        line = {"step": step, "time": time_ms or int(time.time() * 1000), "metrics": dict(metrics)}
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def note(self, markdown: str) -> None:
        _write(self.folder / "note.md", markdown)

    @property
    def figures(self) -> Path:
        return _made(self.folder / "figures")

    @property
    def files(self) -> Path:
        return _made(self.folder / "files")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The metric rows of all attempts in step order, one per step.

    Attempts overlap after a resume. Equal steps carry equal values (contract 4), so the first one seen is kept.
    A line torn by a kill or a full disk is skipped, because the resumed attempt writes that step again.
    """
    rows: dict[int, dict[str, Any]] = {}
    for file in sorted(folder.glob("metrics-*.jsonl")):
        for line in file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                known = rows.setdefault(row["step"], row)
            except (ValueError, KeyError, TypeError):
                continue
            if known is not row:
                known["metrics"] = {**row["metrics"], **known["metrics"]}
    return [rows[step] for step in sorted(rows)]


def copy_record(source: Path, target: Path) -> None:
    """Copies the live record of a task into its artifact and merges the attempts' rows into one file."""
    rows = read_rows(source)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("metrics-*.jsonl"), dirs_exist_ok=True)
    _write(target / "metrics-all.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists and other values stay as they are."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _write(path: Path, text: str) -> None:
    # Replaced atomically: the recorder reads these files while the task runs.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
