"""The fit task: the results of a sweep's cells in, fit.json and runs.csv out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.back_test import by_ratio
from reducible.tasks.fit.files import write_fit
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitSpec
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.learning_rates import LearningRates, learning_rates, search_of
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import read_manifest
from reducible.tasks.workflow.task import Context


def run(context: Context) -> None:
    """Inputs: the train artifacts that the spec's cells name. Those that diverged are excluded by name."""
    spec: FitSpec = context.spec
    table = table_of(spec, context.inputs)
    fit = fit_runs(table, spec.options)
    write_fit(fit, context.staging)
    rates = rates_of(spec, context.inputs)
    if rates is not None:
        rates.save(context.staging)
    record = Record(context.staging / "record", context.attempt)
    record.describe(
        "fit",
        context.label,
        {"options": spec.options.model_dump(), "runs": len(fit.used), "excluded": len(fit.excluded)},
        tags={**context.tags, "identified": fit.health.level},
    )
    record.row(0, metrics_of(fit) | ({"rates/at_edge": float(len(rates.at_edge))} if rates else {}))
    said = [summary(fit), *(rates.sentences if rates else ())]
    record.note(f"### {context.label}\n\n```\n{chr(10).join(said)}\n```\n")


def table_of(spec: FitSpec, inputs: Any) -> pandas.DataFrame:
    """One row for each planned cell: its result, or the reason why there is none."""
    rows = [_row(cell.label, cell.budget, cell.seed, Path(inputs[cell.input])) for cell in spec.cells]
    rows += [{"name": gone.label, "status": "unfinished", "reason": gone.reason} for gone in spec.excluded]
    columns = ["name", "N", "N_without_embeddings", "D", "C", "loss", "budget", "seed", "status", "reason"]
    table = pandas.DataFrame(rows, columns=[*columns, "learning_rate", "device_flops"])
    return table if spec.unique_tokens is None else table.assign(unique_tokens=spec.unique_tokens)


def rates_of(spec: FitSpec, inputs: Mapping[str, Path]) -> LearningRates | None:
    """What the searches of the cells found; None if there were none."""
    searches = []
    for cell in spec.cells:
        if cell.search is None:
            continue
        trained = json.loads((inputs[cell.input] / "result.json").read_text())
        found = json.loads((inputs[cell.search] / "result.json").read_text())
        planned = read_manifest(inputs[cell.input])["spec"]
        D = float(planned["stop_step"] * planned["batch"])
        searches.append(search_of(cell.label, float(trained[spec.options.counts]), D, planned["batch"], found))
    return learning_rates(searches) if searches else None


def _row(label: str, budget: float | None, seed: int | None, artifact: Path) -> dict[str, Any]:
    path = artifact / "result.json"
    try:
        result = json.loads(path.read_text())
        return {
            "name": label,
            "N": result["parameters"],
            "N_without_embeddings": result["parameters_without_embeddings"],
            "D": result["units"],
            "C": result["flops"],
            "loss": result["validation_loss"],
            "budget": budget,
            "seed": seed,
            "status": result["status"],
            "reason": result.get("reason"),
            "learning_rate": result.get("learning_rate"),
            "device_flops": _device_flops(result, artifact),
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} of {label} is not the result of a training ({error!r})") from None


def _device_flops(result: dict[str, Any], artifact: Path) -> float | None:
    """FLOP/s of one device while it stepped; None if the training did not say how many it had."""
    path = artifact / "record" / "describe.json"
    if not path.is_file() or not result.get("units_per_second") or not result["units"]:
        return None
    ran = json.loads(path.read_text())["parameters"]
    each = ran.get("execution.gpus_per_worker") or ran.get("execution.cpus_per_worker") or 1
    devices = float(each) * ran.get("execution.workers", 1)
    return float(result["units_per_second"] * result["flops"] / result["units"] / devices)


def metrics_of(fit: Fit) -> dict[str, float]:
    """What a table of fits is sorted by; unknown figures are left out."""
    health = fit.health
    metrics = {
        "fit/share_at_best": health.share_at_best,
        "fit/residual_deviation": health.residual_deviation,
        "fit/r_squared": health.r_squared,
        "fit/condition_number": health.condition_number,
        "fit/seconds": fit.seconds,
    }
    if fit.law is not None:
        for name, estimate in fit.law.parameters.items():
            metrics |= {
                f"law/{name}": estimate.value,
                f"law/{name}_low": estimate.low,
                f"law/{name}_high": estimate.high,
            }
    if fit.allocation is not None:
        metrics["law/a"] = fit.allocation.a.value
    if fit.isoflop is not None:
        metrics["isoflop/a"] = fit.isoflop.a.value
    for row in by_ratio(fit.back_tests):
        metrics |= {
            f"back_test/median_error_at_{row.ratio:.0f}_times": row.median,
            f"back_test/worst_error_at_{row.ratio:.0f}_times": row.worst,
        }
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
