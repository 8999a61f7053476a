"""Units/s of every family's train step on this device, and the share of the time that its kernels run.

    python benchmarks/gpu_families.py [--width 512] [--length 256] [--rows 64] [--steps 20] [--family seq2seq ...]

Made-up batches of full length, bf16 on a GPU. On a CPU it runs too, in fp32, and "kernels" are operators. A unit is
a target token, for series a step. The share is the time in kernels over the time of the steps, both while profiled.
"""

import argparse
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from reducible.data.batches import Batches
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training
from reducible.tasks.train.peak import peak_flops
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

VOCABULARY = 4096
CHANNELS = 88
FACTS: dict[str, dict[str, Any]] = {
    "text": {"vocabulary": VOCABULARY},
    "sentences": {"vocabulary": VOCABULARY},
    "pairs": {"source_vocabulary": VOCABULARY, "vocabulary": VOCABULARY, "shared": False},
    "series": {"channels": CHANNELS},
}


class MadeUp:
    """Random examples of one length."""

    split, fingerprint = "train", "made up"

    def __init__(self, reads: str, length: int) -> None:
        self.reads, self.sequence = reads, length

    def __len__(self) -> int:
        return 4096

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows, random = len(indices), np.random.default_rng(indices[0])
        if self.reads == "series":
            shape = (rows, self.sequence, CHANNELS)
            values = random.integers(0, 2, shape).astype(np.float32)
            return {"values": values, "observed": np.ones(shape, bool), "steps": np.ones(shape[:2], bool)}
        tokens = random.integers(0, VOCABULARY, (rows, self.sequence + 1))
        batch = {"inputs": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
        if self.reads == "pairs":
            batch |= {"source": tokens[:, 1:].copy(), "source_lengths": np.full(rows, self.sequence)}
        return batch

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(batch["steps" if self.reads == "series" else "targets"].size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}; width {arguments.width}, {arguments.rows} x {arguments.length} units")
    print(f"{'family':16} {'parameters':>12} {'units/s':>12} {'ms/step':>9} {'MFU':>7} {'kernels':>8}")
    for name in arguments.family:
        print(row(name, arguments), flush=True)


def row(name: str, arguments: argparse.Namespace) -> str:
    kind = FAMILIES[name]
    config = kind.config(**FACTS[kind.reads]).scaled(arguments.width)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    units = arguments.rows * arguments.length
    spec = TrainSpec(
        family=name,
        model={field.name: getattr(config, field.name) for field in fields(config)},
        sequence=arguments.length,
        stop_step=1_000_000,
        batch=units,
        micro_batch=arguments.rows,
        precision=precision,
    )
    batches = Batches(MadeUp(kind.reads, arguments.length), spec.batch, spec.micro_batch, spec.seed)
    lengths = Lengths.fixed(arguments.length, arguments.length if kind.reads == "pairs" else 0)
    data = TrainingData(batches, batches, [], None, lengths)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(spec, Execution(), data, None, Path(folder), Record(Path(folder), "benchmark"), 1e-3)
        run(training, 0, 5)
        began = time.perf_counter()
        run(training, 5, 5 + arguments.steps)
        seconds = (time.perf_counter() - began) / arguments.steps
        share = busy_share(training, 5 + arguments.steps)
        training.checkpoints.close()
    cost = kind.cost(config, lengths)
    peak = peak_flops(training.world.device, precision)
    mfu = f"{units / seconds * cost.training_flops_per_unit / peak:.1%}" if peak else "-"
    return f"{name:16} {cost.parameters:12,} {units / seconds:12,.0f} {seconds * 1e3:9.1f} {mfu:>7} {share:8.0%}"


def run(training: Training, first: int, last: int) -> None:
    for step in range(first, last):
        training.step(step)
    training.look(last)  # waits for the device


def busy_share(training: Training, first: int) -> float:
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    began = time.perf_counter()
    with torch.profiler.profile(activities=activities) as recorded:
        run(training, first, first + 3)
        wall = time.perf_counter() - began
    events = recorded.key_averages()
    total = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    return total / 1e6 / wall


if __name__ == "__main__":
    main()
