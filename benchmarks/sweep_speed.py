"""The same law of 20 cells with and without trunks, one cell at a time and several: FLOPs, seconds, and the laws.

    PYTHONPATH=. python benchmarks/sweep_speed.py [--turns 1] [ARM ...]

Each arm is a whole sweep in a store of its own, on a dataset that is there. Ray runs already, its workers do not. Arms
take turns, so that what else the machine does falls on all of them.
"""

import argparse
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reducible.pipelines.cluster.ray_session import session
from reducible.pipelines.engine import engine
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.pipelines.sweep.sweep import sweep_recipe
from reducible.tasks.fit.result import Fit
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order

TOKENS = [48_000, 77_000, 123_000, 197_000, 315_000]  # a factor of 1.6 apart
WIDTHS = [8, 12, 16, 20]
ARMS: dict[str, dict[str, Any]] = {
    "apart, one at a time": {"cpus": 1},
    "apart, a cell a core": {"cpus": 2},
    "trunks, one at a time": {"cpus": 1, "trunk": True},
    "trunks, a cell a core": {"cpus": 2, "trunk": True},
    "trunks, two cells a core": {"cpus": 2, "trunk": True, "cpus_per_worker": 0.5},
}


def recipe(trunk: bool = False, cpus_per_worker: float = 1, cpus: int = 2) -> Recipe:
    data = {"source": "builtin:stdlib", "tokenizer": {"kind": "bytes"}, "sequence": 64}
    return Recipe.model_validate(
        {
            "name": "speed",
            "data": data,
            "train": {"batch": 256, "validation": {"every": 1, "units": 16_384}},
            "compute": {"cpus_per_worker": cpus_per_worker},
            "sweep": {"tokens": TOKENS, "widths": WIDTHS, "trunk": trunk},
        }
    )


def run(settings: dict[str, Any], made: Path, folder: Path) -> dict[str, Any]:
    """Runs one arm; returns its FLOPs, its seconds and its law."""
    root = folder / "root"
    shutil.copytree(made, root)
    wanted = recipe(**settings)
    trainings = in_order([cell.train for cell in sweep_tasks(wanted, Store(root)).cells])
    with ExitStack() as stack:
        opened(stack, settings["cpus"])
        start = time.perf_counter()
        assert sweep_recipe(wanted, str(root)) == 0
        seconds = time.perf_counter() - start
    fit = Fit.load(next((root / "artifacts" / "fit").glob("*/fit.json")))
    return {"flops": sum(task.weight for task in trainings if task.name == "train"), "seconds": seconds, "fit": fit}


def opened(stack: ExitStack, cpus: int, tries: int = 6) -> None:
    """Opens Ray. On a busy machine its start times out now and then."""
    for left in reversed(range(tries)):
        try:
            stack.enter_context(session(cpus=cpus))
            return
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise


def law_line(fit: Fit) -> str:
    assert fit.law is not None
    return ", ".join(
        f"{name} {value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
        for name, value in fit.law.parameters.items()
        if name in ("E", "alpha", "beta")
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "made"
        wanted = recipe()
        with ExitStack() as stack:
            opened(stack, 2)
            with engine(Store(made), f"sqlite:///{temporary}/mlflow.db") as here:
                here.make([sweep_tasks(wanted, Store(made)).dataset])
        results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in asked.arms}
        for turn in range(asked.turns):
            for arm in asked.arms:
                results[arm].append(run(ARMS[arm], made, Path(temporary) / f"{arm} {turn}"))
                print(json.dumps({"arm": arm, "seconds": results[arm][-1]["seconds"]}), flush=True)
    first = results[asked.arms[0]]
    print("\n| arm | FLOPs | of the first | seconds | of the first | law |\n|---|---:|---:|---:|---:|---|")
    for arm, turns in results.items():
        seconds = sorted(one["seconds"] for one in turns)[len(turns) // 2]
        base = sorted(one["seconds"] for one in first)[len(first) // 2]
        flops = turns[0]["flops"]
        print(
            f"| {arm} | {flops:.3g} | {flops / first[0]['flops']:.3f} | {seconds:.0f} | {seconds / base:.2f} "
            f"| {law_line(turns[0]['fit'])} |"
        )


if __name__ == "__main__":
    main()
