"""How many FLOPs does one trunk with cooldown branches save against a separate run for every count of tokens?

    python benchmarks/trunk_savings.py

Counted on the plans of both designs by the ledger, not estimated; then once more with a larger count added later.
"""

import tempfile
from typing import Any

from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep.sweep import sweep_tasks
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order


def flops(tokens: list[str], trunk: bool, cooldown: float) -> dict[str, float]:
    """Training FLOPs by identity."""
    content: dict[str, Any] = {
        "name": "trunk",
        "data": {"generated": {"documents": 100}, "tokenizer": {"kind": "bytes"}, "sequence": 128},
        "train": {"batch": 1024, "schedule": {"cooldown": cooldown}},
        "sweep": {"tokens": tokens, "widths": [32, 64, 128], "trunk": trunk},
    }
    with tempfile.TemporaryDirectory() as root:
        cells = sweep_tasks(Recipe.model_validate(content), Store(root)).cells
        tasks = in_order([cell.train for cell in cells])
        return {task.identity: task.weight for task in tasks if task.name == "train"}


def main() -> None:
    counts = ["1M", "2M", "4M", "8M", "16M"]
    print("| design | cooldown | FLOPs | of separate runs |\n|---|---:|---:|---:|")
    for cooldown in (0.1, 0.2, 0.3):
        apart = sum(flops(counts, False, cooldown).values())
        trunk = sum(flops(counts, True, cooldown).values())
        print(f"| separate runs | {cooldown:.0%} | {apart:.4g} | 100 % |")
        print(f"| trunk and branches | {cooldown:.0%} | {trunk:.4g} | {trunk / apart:.1%} |")
    before, after = flops(counts, True, 0.2), flops([*counts, "32M"], True, 0.2)
    added = sum(weight for identity, weight in after.items() if identity not in before)
    alone = sum(weight for identity, weight in flops(["32M"], False, 0.2).items())
    print(f"\nadding 32M later: {added:.4g} FLOPs, {added / alone:.1%} of three runs of 32M from nothing;")
    print(f"tasks of before that run again: {len(before.keys() - after.keys())}")


if __name__ == "__main__":
    main()
