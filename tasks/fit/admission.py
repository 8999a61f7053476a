"""Which runs may enter a fit. Admission matters more than the optimiser: every run left out is named with its reason.

One unfinished run among 110 moved an exponent from .42 to .51, and not keeping the best learning rate of each (N, D)
moved E from 1.81 to 1.40 (measured on published data).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.result import Run
from reducible.tasks.fit.status import FINISHED, status_word

Cell = tuple[float | None, ...]  # N, D and unique tokens, or C if there is no N or no D


def admit(table: pandas.DataFrame, counts: str = "parameters", needed: Sequence[str] = ("N", "D")) -> list[Run]:
    """The table as runs in its own order, those unfit for fitting marked with the reason.

    Columns C, loss and those that are `needed`; optional N, D, name, budget, seed, status, reason, learning_rate,
    N_without_embeddings, unique_tokens, weight. A cell is one (N, D), and one number of unique tokens if the table has
    them; of runs without N or D it is one C. Rows of a cell are replicates if their seeds differ. If learning rates
    differ, the rate with the lowest mean loss stays. Of several rows with one seed (or none), the lowest loss stays.
    """
    size = "N" if counts == "parameters" else "N_without_embeddings"
    named = {"N": size}
    missing = [
        column
        for column in (*(named.get(column, column) for column in needed), "C", "loss")
        if column not in table.columns
    ]
    if missing:
        raise UserError(f"the table of runs lacks the column {missing[0]}; it has {', '.join(table.columns)}")
    required = tuple(dict.fromkeys((*needed, "C", *(("weight",) if "weight" in table else ()))))
    rows = enumerate(table.to_dict("records"))
    runs = [_run({str(k): v for k, v in row.items()}, i, size, required) for i, row in rows]
    runs = _distinct_names(runs)
    unknown = [math.nan] * len(runs)
    rates = [_number(rate) for rate in table["learning_rate"]] if "learning_rate" in table else unknown
    cells = [_cell(run) for run in runs]
    return _one_per_cell(_best_rates(runs, rates, cells), cells)


def _cell(run: Run) -> Cell:
    """Runs of one cell differ in chance alone. Where N or D is not known, those of one C do."""
    if math.isnan(run.N) or math.isnan(run.D):
        return (run.C,)
    return (run.N, run.D, run.unique_tokens)


def _run(row: dict[str, object], i: int, size: str, required: Sequence[str]) -> Run:
    status = status_word(row["status"]) if "status" in row and not _absent(row["status"]) else FINISHED
    run = Run(
        name=str(row["name"]) if "name" in row and not _absent(row["name"]) else f"run {i + 1}",
        N=_number(row.get(size)),
        D=_number(row.get("D")),
        C=_number(row["C"]),
        loss=_number(row["loss"]),
        budget=None if _absent(row.get("budget")) else _number(row["budget"]),
        seed=None if _absent(row.get("seed")) else int(_number(row["seed"])),
        status=status,
        unique_tokens=None if _absent(row.get("unique_tokens")) else _number(row["unique_tokens"]),
        weight=None if _absent(row.get("weight")) else _number(row["weight"]),
        device_flops=None if _absent(row.get("device_flops")) else _number(row["device_flops"]),
    )
    given = row.get("reason")
    if status != FINISHED:
        return _out(run, status if _absent(given) else f"{status}: {given}")
    for what in required:
        value = math.nan if getattr(run, what) is None else getattr(run, what)
        if not (math.isfinite(value) and value > 0):
            return _out(run, f"{what} is {value:g}: it must be a positive number")
    if not (math.isfinite(run.loss) and run.loss > 0):
        return _out(run, f"loss is {run.loss:g}: the law needs a positive, finite loss")
    return run


def _best_rates(runs: list[Run], rates: list[float], cells: list[Cell]) -> list[Run]:
    losses: dict[Cell, dict[float, list[float]]] = {}
    for run, rate, cell in zip(runs, rates, cells, strict=True):
        if run.used and not math.isnan(rate):
            losses.setdefault(cell, {}).setdefault(rate, []).append(run.loss)
    best = {
        cell: min(by_rate, key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate])) for cell, by_rate in losses.items()
    }
    return [
        _out(run, f"learning rate {rate:g} is not the best of this {_named(cell)}: {best[cell]:g} is")
        if run.used and not math.isnan(rate) and rate != best[cell]
        else run
        for run, rate, cell in zip(runs, rates, cells, strict=True)
    ]


def _one_per_cell(runs: list[Run], cells: list[Cell]) -> list[Run]:
    best: dict[tuple[Cell, int | None], Run] = {}
    keys = [(cell, run.seed) for run, cell in zip(runs, cells, strict=True)]
    for run, key in zip(runs, keys, strict=True):
        if run.used and (key not in best or run.loss < best[key].loss):
            best[key] = run
    return [
        _out(run, f"same {'C' if len(key[0]) == 1 else 'N, D'} and seed as {best[key].name}, which has the lower loss")
        if run.used and best[key] is not run
        else run
        for run, key in zip(runs, keys, strict=True)
    ]


def _named(cell: Cell) -> str:
    return "C" if len(cell) == 1 else "(N, D)"


def _distinct_names(runs: list[Run]) -> list[Run]:
    seen: dict[str, int] = {}
    named = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        named.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return named


def _out(run: Run, reason: str) -> Run:
    return replace(run, used=False, reason=reason)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pandas.NA


def _number(value: object) -> float:
    return math.nan if _absent(value) else float(value)  # type: ignore[arg-type]
