"""Tiny Shakespeare by character: nanoGPT's CPU recipe (4 layers x 128, context 64, batch 12, 2000 steps), and an LSTM.

    PYTHONPATH=. python benchmarks/recurrent_shakespeare.py input.txt --figure shakespeare.png
    PYTHONPATH=. python benchmarks/recurrent_shakespeare.py input.txt --steps 500 --rates 8e-3,1.6e-2 --models lstm

The first trains both models at their rates, the second is how rates were tried.
Both models have about equal parameters, see the same 1.5 million characters in the same order and are trained by the
train step that every training uses. Loss: nats per character over the whole last tenth, in windows of the context.
Seconds are processor time of one thread. What was trained before is read from --work.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch

from reducible.data.batches import Batches, fixed
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import family
from reducible.models.weights.model_folder import load_model
from reducible.tasks.evaluate.evaluate_text import measure
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loop import train
from reducible.tasks.train.optimizers.adamw import AdamWSpec
from reducible.tasks.train.train_spec import Execution, ScheduleSpec, TrainSpec, ValidationSpec
from reducible.tasks.workflow.record import Record

CONTEXT, BATCH, STEPS = 64, 12, 2000
MODELS = {
    "transformer": ("transformer", {"width": 128, "depth": 4, "heads": 4}),
    "lstm": ("recurrent", {"width": 220, "depth": 2}),
    "lstm-3": ("recurrent", {"width": 180, "depth": 3}),
    "lstm-1": ("recurrent", {"width": 308, "depth": 1}),
    "gru": ("recurrent", {"width": 254, "depth": 2, "cell": "gru"}),
}
RATES = {"transformer": 4e-3, "lstm": 2e-2}
"""The best of those tried with 500 steps (benchmarks/README.md)."""


class Windows:
    """Stretches of a text, one starting every `stride` characters."""

    sequence = CONTEXT

    def __init__(self, split: str, ids: np.ndarray, stride: int) -> None:
        self.split, self.ids, self.stride = split, ids, stride
        self.fingerprint = f"shakespeare-{split}-{stride}"

    def __len__(self) -> int:
        return (len(self.ids) - 1 - CONTEXT) // self.stride + 1

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self.ids[np.asarray(indices)[:, None] * self.stride + np.arange(CONTEXT + 1)]
        return {"inputs": rows[:, :-1].copy(), "targets": rows[:, 1:].copy()}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(batch["targets"].size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="tinyshakespeare's input.txt")
    parser.add_argument("--models", default="transformer,lstm", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rates", help="learning rates to try; default: the best ones found")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--work", type=Path, default=Path(".reducible/shakespeare"))
    parser.add_argument("--figure", type=Path, help="PNG of the loss by position, and a CSV beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.text.read_text()
    symbols = sorted(set(text))
    ids = np.searchsorted(symbols, list(text)).astype(np.int64)
    border = len(ids) * 9 // 10
    train_part, held_out = Windows("train", ids[:border], 1), Windows("validation", ids[border:], CONTEXT)
    print(f"{len(ids):,} characters, {len(symbols)} symbols; validation: {len(held_out)} windows of {CONTEXT}")
    print("| model | parameters | learning rate | nats/char | processor seconds | characters/s |")
    print("|---|---:|---:|---:|---:|---:|")
    curves = {}
    for name in arguments.models.split(","):
        rates = [float(rate) for rate in arguments.rates.split(",")] if arguments.rates else [RATES[name]]
        for rate in rates:
            done = trained(name, rate, arguments.steps, train_part, held_out, len(symbols), arguments.work)
            units = arguments.steps * BATCH * CONTEXT
            print(
                f"| {name} | {done['parameters']:,} | {rate:g} | {done['loss']:.4f} ± "
                f"{1.96 * done['loss_standard_error']:.4f} | {done['seconds']:.0f} | {units / done['seconds']:,.0f} |",
                flush=True,
            )
            curves[name] = done["loss_by_position"]
    if arguments.figure:
        draw(curves, arguments.figure)


def trained(
    name: str, rate: float, steps: int, train_part: Windows, held_out: Windows, vocabulary: int, work: Path
) -> dict:
    """Trains unless that was done, and measures on the whole held-out part."""
    family_name, keys = MODELS[name]
    kind = family(family_name)
    config = kind.config(vocabulary=vocabulary, **keys)
    folder = work / f"{name}-{rate:g}-{steps}"
    result = folder / "measured.json"
    if result.is_file():
        return json.loads(result.read_text())
    spec = TrainSpec(
        family=family_name,
        model={"vocabulary": vocabulary, **keys},
        sequence=CONTEXT,
        stop_step=steps,
        batch=BATCH * CONTEXT,
        micro_batch=BATCH,
        optimizer=AdamWSpec(learning_rate=rate, weight_decay=0.1, betas=(0.9, 0.99)),
        schedule=ScheduleSpec(kind="cosine", warmup_steps=steps // 20, final_fraction=0.1),
        validation=ValidationSpec(every=steps // 4, examples=200),
    )
    examples = TrainingData(
        Batches(train_part, spec.batch, spec.micro_batch, spec.seed),
        Batches(held_out, CONTEXT, 64, spec.seed),
        fixed(held_out, 200, 64),
        np.ones(vocabulary, np.int64),
        Lengths.fixed(CONTEXT),
    )
    began = time.process_time()
    outcome = train(
        spec, Execution(log_every=50), data=examples, start=None, work=folder, record=Record(folder / "record", "a")
    )
    seconds = time.process_time() - began
    if outcome.status != "finished":
        raise SystemExit(f"{name} at {rate:g}: {outcome.reason}")
    measured = measure(load_model(folder / MODEL), held_out, np.ones(vocabulary, np.int64), None)
    parameters = kind.cost(config, Lengths.fixed(CONTEXT)).parameters
    result.write_text(json.dumps(measured | {"seconds": seconds, "parameters": parameters}))
    return json.loads(result.read_text())


def draw(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, losses in curves.items():
        axes.plot(range(1, CONTEXT + 1), losses, label=f"{name} ({np.mean(losses):.3f})")
    axes.set(xscale="log", xlabel="characters read before the target", ylabel="nats per character")
    axes.set_title("Tiny Shakespeare, last tenth: loss by position in the context")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["position", *curves])
        writer.writerows(
            [place + 1, *(f"{losses[place]:.5f}" for losses in curves.values())] for place in range(CONTEXT)
        )


if __name__ == "__main__":
    main()
