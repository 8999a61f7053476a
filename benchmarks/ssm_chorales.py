"""JSB chorales with recipes/chorales.yaml: -ELBO and importance-weighted nats per step on the test part, against time.

    PYTHONPATH=. python benchmarks/ssm_chorales.py JSB_Chorales.json [key=value ...]

Convention: nats of all test chorales over all their steps (total over total), the first step of each counted; every
chorale whole. Tasks run in this process and without Ray, on one thread; what was interrupted goes on where it was.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from reducible.data.batches import fixed
from reducible.models.weights.model_folder import load_model
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.run import run_tasks
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.train.folders import MODEL
from reducible.tasks.workflow.attempt import payload_of, run_here
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.store import Store

DRAWS = 5  # of the latents for the bound
ROOM = 3200  # steps, padding included, of a forward pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rolls", type=Path, help="piano rolls with their splits, as JSON")
    parser.add_argument("overrides", nargs="*", help="keys of the recipe, such as train.tokens=6M")
    parser.add_argument("--root", default=".reducible", help="where artifacts lie")
    parser.add_argument("--samples", type=int, default=100, help="of the importance-weighted estimate")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    recipe_file = Path(__file__).resolve().parents[1] / "recipes" / "chorales.yaml"
    recipe = load_recipe(recipe_file, [f"data.source={arguments.rolls.resolve()}", *arguments.overrides])
    store = Store(arguments.root)
    tasks = run_tasks(recipe, store)
    dataset = run_here(payload_of(tasks.dataset), store)
    began = time.process_time()
    trained = run_here(payload_of(tasks.train), store)
    seconds = time.process_time() - began
    curve(trained, seconds)
    result = json.loads((trained / "result.json").read_text())
    print(f"{result['parameters']:,} parameters, {result['step']:,} steps, {result['units']:,} frames seen")
    torch.manual_seed(0)
    report(trained / MODEL, dataset, arguments.samples)


def curve(trained: Path, seconds: float) -> None:
    """The validation bound against processor seconds, spread evenly over the steps."""
    rows = [row for row in read_rows(trained / "record") if "val/loss" in row["metrics"]]
    last = rows[-1]["step"]
    print(f"{seconds:.0f} processor seconds" if seconds > 5 else "trained before; no seconds of this run")
    print("| seconds | train | validation -ELBO | of it KL |\n|---:|---:|---:|---:|")
    for row in rows:
        metrics = row["metrics"]
        train = metrics.get("train/loss", float("nan"))
        at = seconds * row["step"] / last
        print(f"| {at:.0f} | {train:.3f} | {metrics['val/loss']:.3f} | {metrics['val/kl']:.2f} |")


@torch.no_grad()
def report(model_folder: Path, dataset: Path, samples: int) -> None:
    model = load_model(model_folder)
    for split in ("validation", "test"):
        examples = open_dataset(dataset).examples("series", split, 160)
        bounds, weighted, units = np.zeros(DRAWS), 0.0, 0
        for indices in fixed(examples, len(examples), ROOM // examples.sequence):
            batch = {name: torch.from_numpy(array) for name, array in examples.batch(indices).items()}
            bounds += [model(batch).nats.item() for _ in range(DRAWS)]
            weighted -= model.log_likelihood(batch, samples).sum().item()
            units += examples.units({"steps": batch["steps"].numpy()})
        bounds /= units
        print(
            f"{split}: -ELBO {bounds.mean():.3f} (deviation of a draw {bounds.std(ddof=1):.3f}), importance-weighted "
            f"with {samples}: {weighted / units:.3f} nats a step, over {units:,} steps of {len(examples)} chorales",
            flush=True,
        )


if __name__ == "__main__":
    main()
