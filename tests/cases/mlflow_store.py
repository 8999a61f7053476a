"""Makes stores as real commands leave them, without training: records, results and manifests of a small sweep."""

import hashlib
import json
import math
import random
import time
from pathlib import Path
from typing import Any

from reducible.tasks.workflow.record import Record, copy_record

LAW = {"E": 1.2, "A": 18.0, "alpha": 0.35, "B": 120.0, "beta": 0.37}


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def train_record(folder: Path, name: str, attempt: str, first: int, last: int, **described: Any) -> Record:
    """Rows of steps first..last (every tenth), equal in every attempt; the time differs."""
    record = Record(folder, attempt)
    parameters, batch = described.get("parameters", 50_000), described.get("batch", 2048)
    record.describe(
        "train",
        name,
        {
            "model": {"family": "transformer", "width": described.get("width", 32), "depth": 3, "heads": 2},
            "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1},
            "sequence": 128,
            "batch": batch,
            "seed": 0,
        },
        tags=described.get("tags"),
        datasets=[
            {
                "name": "stdlib",
                "digest": "3f9a" * 16,
                "source": "builtin:stdlib",
                "split": "train",
                "tokens": 4_100_000,
            },
            {
                "name": "stdlib",
                "digest": "3f9a" * 16,
                "source": "builtin:stdlib",
                "split": "validation",
                "tokens": 215_000,
            },
        ],
    )
    now = int(time.time() * 1000)
    for step in range(first, last + 1, 10):
        record.row(step, row_metrics(step, parameters, batch), now + 12 * step)
    record.note(
        f"# {name}\n\n{parameters:,} parameters, {last} steps of {batch:,} tokens.\n\n"
        "| | |\n|---|---|\n| validation loss | 2.31 nats |\n| bits per byte | 1.11 |\n"
    )
    return record


def row_metrics(step: int, parameters: int, batch: int) -> dict[str, float]:
    noise = random.Random(step * 7919 + parameters).gauss(0, 0.02)
    tokens = max(step, 1) * batch
    loss = law_loss(parameters, tokens)
    metrics = {
        "train/loss": min(loss + noise, 6.0),
        "train/learning_rate": 3e-3 * min(1.0, step / 50),
        "train/gradient_norm": 0.4 + abs(noise) * 5,
        "train/units": float(tokens),
        "train/flops": 6.0 * parameters * tokens,
        "speed/units_per_second": 41_000 + 900 * noise,
        "speed/mfu": 0.31 + noise / 10,
        "memory/peak_bytes": 2.1e8,
    }
    if step % 50 == 0:
        metrics["val/loss"] = min(loss + 0.03, 6.0)
    return metrics


def law_loss(parameters: float, tokens: float) -> float:
    return LAW["E"] + LAW["A"] * parameters ** -LAW["alpha"] + LAW["B"] * tokens ** -LAW["beta"]


def commit(root: Path, task: str, name: str, record: Path, label: str, **extra: Any) -> Path:
    """Moves a live record into an artifact with a manifest; extra files as name=text."""
    artifact = root / "artifacts" / task / identity(name)
    artifact.mkdir(parents=True)
    copy_record(record, artifact / "record")
    for file, text in extra.pop("files", {}).items():
        (artifact / file).write_text(text)
    manifest = {
        "task": task,
        "identity": identity(name),
        "label": label,
        "code": "1f" * 20 + "+changes",
        "attempt": extra.get("attempt", f"attempt-{name}"),
        "created": extra.get("created", time.time()),
        "seconds": extra.get("seconds", 40.0),
        "inputs": extra.get("inputs", {}),
    }
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    return artifact


def work_record(root: Path, task: str, name: str) -> Path:
    return root / "work" / task / identity(name) / "record"


def commit_cell(root: Path, name: str, budget: float, width: int, created: float, **extra: Any) -> Path:
    parameters = 12 * width * width * 3 + 512 * width
    steps = max(40, round(budget / (6 * parameters) / 2048 / 10) * 10)
    tags = extra.pop("tags", None)
    record = train_record(
        work_record(root, "train", name), name, "a1", 0, steps, parameters=parameters, width=width, tags=tags
    )
    tokens = steps * 2048
    loss = law_loss(parameters, tokens) + random.Random(name).gauss(0, 0.005)
    diverged = extra.get("diverged", False)
    result = {
        "status": "diverged" if diverged else "finished",
        "reason": f"loss is not finite at step {steps}" if diverged else None,
        "step": steps,
        "units": tokens,
        "flops": 6.0 * parameters * tokens,
        "parameters": parameters,
        "parameters_without_embeddings": parameters - 512 * width,
        "validation_loss": math.nan if diverged else loss,
        "validation_bits_per_byte": None if diverged else loss * 0.48,
        "train_loss": loss - 0.02,
        "seconds": 40.0,
        "units_per_second": 41_000.0,
        "learning_rate": 3e-3,
    }
    files = {"result.json": json.dumps(result)}
    return commit(root, "train", name, record.folder, name, files=files, created=created, **extra)


def make_sweep(
    root: Path,
    sweep: str = "demo",
    budgets: tuple[float, ...] = (3e11, 1e12, 3e12),
    widths: tuple[int, ...] = (16, 24, 40, 64),
) -> dict[str, Path]:
    """Budgets x widths of trainings, one diverged; a fit; what speaks for the sweep. Name of the run -> artifact."""
    made: dict[str, Path] = {}
    start = time.time() - 3600
    cells = [(budget, width) for budget in budgets for width in widths]
    for index, (budget, width) in enumerate(reversed(cells)):
        name = f"train {budget:.0e} w{width}".replace("e+", "e")
        created = start + 60 * index + 45
        diverged = (budget, width) == (3e11, 64)
        made[name] = commit_cell(root, name, budget, width, created, diverged=diverged, tags={"sweep": sweep})
    fit = Record(work_record(root, "fit", f"fit {sweep}"), "a1")
    fit.describe(
        "fit", f"fit {sweep}", {"form": "E + A N^-alpha + B D^-beta", "draws": 400, "runs": 11}, {"sweep": sweep}
    )
    fit.row(0, {"law/E": 1.21, "law/E_low": 1.02, "law/E_high": 1.33, "law/alpha": 0.352, "law/beta": 0.368})
    fit.note("# The fit\n\nE = 1.21 [1.02, 1.33], 11 of 12 runs used; excluded: train 3e11 w64 (diverged).")
    fit_name = f"fit {sweep}"
    made[fit_name] = commit(root, "fit", fit_name, fit.folder, fit_name, created=start + 900, seconds=3.0)
    report = Record(work_record(root, "report", f"report {sweep}"), "a1")
    report.describe(
        "sweep", f"sweep {sweep}", {"budgets": list(budgets), "widths": list(widths), "runs": 12}, {"sweep": sweep}
    )
    report.row(0, {"law/E": 1.21, "law/gamma": 0.17, "optimum/log10_parameters": 5.1, "optimum/log10_units": 7.2})
    report.note(
        f"# Sweep {sweep}\n\n**L(C) = 1.21 + 410 C^-0.17** (E in [1.02, 1.33], 95 %).\n\n"
        "With ten times the largest budget (3e13 FLOPs): 131,000 parameters on 17 M tokens, loss 1.93 [1.88, 1.98].\n\n"
        "Excluded: train 3e11 w64 (diverged)."
    )
    (report.files / "report.html").write_text(
        "<!doctype html><title>Sweep</title><body><h1>Sweep</h1>"
        "<svg width=200 height=80><circle cx=40 cy=40 r=30 fill=teal /></svg>"
        "<script>document.body.append('script ran')</script></body>"
    )
    made[f"sweep {sweep}"] = commit(
        root, "report", f"report {sweep}", report.folder, f"report {sweep}", created=start + 930, seconds=2.0
    )
    return made
