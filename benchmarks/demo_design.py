"""How well would a sweep know E? Its cells' FLOPs, and the width of E's 95 % interval by the law's derivatives.

    PYTHONPATH=. python benchmarks/demo_design.py [RECIPE ...]

Nothing is trained. The width is for a given noise of a cell's loss, in percent, around a given law; it is a linear
approximation, good for comparing designs. By default: the demo's recipe and the design that it had before.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order

LAW = np.array([1.0, np.log(17.0), 0.34, np.log(300.0), 0.5])
"""E, log A, alpha, log B, beta: about what the demo finds."""
NOISES = (0.4, 0.8, 1.6)
BEFORE: dict[str, Any] = {
    "trunk": False,
    "budgets": (1.2e11, 5e11, 2e12),
    "widths": ((16, 20, 24, 32, 40), (24, 32, 40, 48, 64), (32, 40, 48, 64, 80)),
}


def loss(law: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    E, log_A, alpha, log_B, beta = law
    return np.asarray(E + np.exp(log_A) * N**-alpha + np.exp(log_B) * D**-beta)


def row(name: str, recipe: Recipe) -> str:
    with tempfile.TemporaryDirectory() as root:
        cells = sweep_tasks(recipe, Store(root)).cells
    trainings = in_order([cell.train for cell in cells])
    flops = sum(task.weight for task in trainings if task.name == "train")
    N = np.array([cell.plan.model.cost.parameters for cell in cells], dtype=float)
    D = np.array([cell.plan.tokens for cell in cells], dtype=float)
    steps = min(cell.plan.tokens / cell.plan.batch for cell in cells)
    step = 1e-5 * np.eye(5)
    change = np.stack([(loss(LAW + h, N, D) - loss(LAW - h, N, D)) / 2e-5 for h in step], axis=1)
    inverse = np.linalg.pinv(change / loss(LAW, N, D)[:, None])
    widths = [2 * 1.96 * noise / 100 * np.linalg.norm(inverse[0]) for noise in NOISES]
    found = " | ".join(f"{width:.2f}" for width in widths)
    return f"| {name} | {len(cells)} | {flops:.3g} | {steps:.0f} | {found} |"


def main() -> None:
    print("| design | cells | FLOPs | steps of the shortest | " + " | ".join(f"{n} %" for n in NOISES) + " |")
    print("|---|---:|---:|---:|" + "---:|" * len(NOISES))
    for name in sys.argv[1:] or ["recipes/demo.yaml"]:
        recipe = load_recipe(Path(name))
        print(row(Path(name).stem, recipe))
        if recipe.name == "demo" and recipe.sweep is not None:
            before = recipe.sweep.model_copy(update=BEFORE)
            print(row("demo, before", recipe.model_copy(update={"sweep": before})))


if __name__ == "__main__":
    main()
