"""Where a report comes from: code, versions, dates and the artifacts behind it, as lines to print."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reducible.tasks.workflow.code_version import code_version
from reducible.tasks.workflow.store import MANIFEST, read_manifest

PACKAGES = ("torch", "ray", "numpy", "scipy", "pandas", "matplotlib", "tokenizers")


def provenance(inputs: Mapping[str, Path] | None = None, now: datetime | None = None) -> dict[str, str]:
    """Label -> value. inputs: artifact folders by name; those of trainings are summed up in one line."""
    lines = {
        "written": _time((now or datetime.now(UTC)).timestamp()),
        "code of the report": code_version(),
        "versions": ", ".join([f"Python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]),
    }
    manifests = [read_manifest(path) for path in (inputs or {}).values() if (path / MANIFEST).is_file()]
    trainings = [manifest for manifest in manifests if manifest["task"] == "train"]
    for manifest in manifests:
        if manifest["task"] != "train":
            lines[f"artifact: {manifest['task']}"] = manifest["identity"]
            lines[f"{manifest['task']} made"] = f"{_time(manifest['created'])} by code {manifest['code']}"
    if trainings:
        made = sorted(manifest["created"] for manifest in trainings)
        codes = ", ".join(sorted({str(manifest["code"]) for manifest in trainings}))
        lines["trainings"] = f"{len(trainings)}, made from {_time(made[0])} to {_time(made[-1])} by code {codes}"
    return lines


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
