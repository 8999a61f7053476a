"""A small search for the learning rate inside one cell: Ray Tune trains the first part of the cell at several rates.

It may try other batches too, each at all rates. The cell keeps its own; the others say what the best one would be.
"""

import json
import math
from pathlib import Path
from typing import Any

from reducible.tasks.errors import UserError
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context

VERSION = 1


class SearchSpec(Frozen):
    """`samples` rates from low to high, evenly spaced in their logarithm. train is the short training of a trial."""

    train: TrainSpec
    samples: int
    low: float
    high: float
    batches: tuple[TrainSpec, ...] = ()
    """The same short training at other batches."""

    @property
    def rates(self) -> list[float]:
        ratio = (self.high / self.low) ** (1 / (self.samples - 1))
        return [float(f"{self.low * ratio**index:.4g}") for index in range(self.samples)]


def run(context: Context) -> None:
    """Writes result.json: the learning rate with the lowest validation loss, and the loss of every trial.

    No trial is stopped because another does better. A trial that finished before a kill is not run again.
    """
    from ray import tune

    spec: SearchSpec = context.spec
    execution: Execution = context.execution
    job = {
        "trains": [train.model_dump_json() for train in (spec.train, *spec.batches)],
        "execution": execution.model_copy(update={"workers": 1, "checkpoint_every": None}).model_dump_json(),
        "data": str(context.inputs["data"]),
        "work": str(context.work),
    }
    trials = [(which, rate) for which in range(1 + len(spec.batches)) for rate in spec.rates]
    todo = [trial for trial in trials if not _trial(context.work, *trial).is_file()]
    if todo:
        tuner = tune.Tuner(
            tune.with_resources(_train_trial, {"CPU": execution.cpus_per_worker, "GPU": execution.gpus_per_worker}),
            # The job travels in the config: Tune keeps one function of a name for all searches that run at once.
            param_space={"trial": tune.grid_search(todo), "job": job},
            run_config=tune.RunConfig(name=context.attempt, storage_path=str(context.work / "tune"), verbose=0),
        )
        for result in tuner.fit():
            if result.error is not None:
                raise UserError(f"a trial of {context.label} failed: {str(result.error).strip().splitlines()[-1]}")
    own, *others = (_losses(context.work, which, spec.rates) for which in range(1 + len(spec.batches)))
    finite = {rate: loss for rate, loss in own.items() if loss is not None and math.isfinite(loss)}
    if not finite:
        raise UserError(
            f"sweep.learning_rate: all rates from {spec.low:g} to {spec.high:g} diverged in {context.label}; lower both"
        )
    best = min(finite, key=lambda rate: finite[rate])
    edge = best in (spec.rates[0], spec.rates[-1])
    batches = [
        [train.batch, [[rate, loss] for rate, loss in losses.items()]]
        for train, losses in zip(spec.batches, others, strict=True)
    ]
    found = {"learning_rate": best, "at_edge": edge, "trials": [[rate, own[rate]] for rate in spec.rates]}
    (context.staging / "result.json").write_text(json.dumps({**found, "batches": batches}, indent=1))
    _record(context, best, edge, own, dict(zip((train.batch for train in spec.batches), others, strict=True)))


def _losses(work: Path, which: int, rates: list[float]) -> dict[float, float | None]:
    return {rate: json.loads(_trial(work, which, rate).read_text())["validation_loss"] for rate in rates}


def _train_trial(config: dict[str, Any]) -> None:
    from ray import tune

    from reducible.tasks.train.loop import train

    (which, rate), job = config["trial"], config["job"]
    path = _trial(Path(job["work"]), which, rate)
    result = train(
        TrainSpec.model_validate_json(job["trains"][which]),
        Execution.model_validate_json(job["execution"]),
        data=Path(job["data"]),
        start=None,
        work=path.parent,
        record=Record(path.parent / "record", "trial"),
        learning_rate=rate,
    )
    loss = result.validation_loss if result.status == "finished" else None
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"validation_loss": loss}))
    part.replace(path)
    tune.report({"loss": loss if loss is not None else float("inf")})


def _trial(work: Path, which: int, rate: float) -> Path:
    """which: 0 is the cell's own batch."""
    return work / "trials" / (f"{rate:.4g}" if which == 0 else f"{which}-{rate:.4g}") / "trial.json"


def _record(
    context: Context,
    best: float,
    edge: bool,
    losses: dict[float, float | None],
    others: dict[int, dict[float, float | None]],
) -> None:
    record = Record(context.staging / "record", context.attempt)
    record.describe("search", context.label, {"spec": context.spec.model_dump(mode="json"), "best": best}, context.tags)
    lines = [
        f"| {rate:.4g} | {'diverged' if loss is None else f'{loss:.4f}'} | {'best' if rate == best else ''} |"
        for rate, loss in losses.items()
    ]
    note = "| learning rate | validation loss | |\n|---:|---:|---|\n" + "\n".join(lines)
    for batch, tried in others.items():
        finite = [loss for loss in tried.values() if loss is not None]
        note += f"\n\nAt a batch of {batch:,} the lowest is {min(finite):.4f}." if finite else ""
    if edge:
        note += "\n\n**The best rate is at the edge of the search: widen sweep.learning_rate.low or .high.**"
    record.note(note)
