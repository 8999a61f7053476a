"""Tokens/s and MFU of the train step on one GPU, for the shape of GPT-2 124M: bf16, sequence 1024, torch.compile.

    python benchmarks/gpu_gpt2.py [--micro-batch 32] [--accumulate 4] [--steps 20] [--no-compile] [--profile]

The step is the one that every training takes, fed with random tokens. --profile shows where the time of the device goes
and how much of it is idle. Published shares of an H100: 450-470k tokens/s, 40 % MFU at 0.855 GFLOP a token.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reducible.data.batches import Batches
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import family
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training
from reducible.tasks.train.peak import peak_flops
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

SEQUENCE, VOCABULARY = 1024, 50304  # 50257 rounded up to a multiple of 128, as all the published figures have it
SHAPE = {
    "vocabulary": VOCABULARY,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "feed_forward": 3072,
    "activation": "gelu",
    "tied": True,
}


class RandomTokens:
    sequence, split, fingerprint = SEQUENCE, "train", "random"

    def __init__(self, count: int = 1024) -> None:
        self.tokens = np.random.default_rng(0).integers(0, VOCABULARY, (count, SEQUENCE + 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self.tokens[indices]
        return {"inputs": rows[:, :-1].copy(), "targets": rows[:, 1:].copy()}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return batch["targets"].size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_gpt2: no CUDA device here; run it where torch.cuda.is_available()")

    spec = TrainSpec(
        model=SHAPE,
        sequence=SEQUENCE,
        stop_step=1_000_000,
        batch=arguments.micro_batch * arguments.accumulate * SEQUENCE,
        micro_batch=arguments.micro_batch,
        precision="bf16",
    )
    tokens = RandomTokens()
    batches = Batches(tokens, spec.batch, spec.micro_batch, spec.seed)
    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(compile=not arguments.no_compile)
        examples = TrainingData(batches, batches, [], None, Lengths.fixed(SEQUENCE))
        training = Training(spec, execution, examples, None, Path(folder), Record(Path(folder), "benchmark"), 6e-4)
        measure(training, arguments.steps)
        if arguments.profile:
            profile(training)
        training.checkpoints.close()


def measure(training: Training, steps: int) -> None:
    spec, device = training.spec, training.world.device
    began = time.perf_counter()
    for step in range(5):
        training.step(step)
    training.look(5)
    print(f"first five steps, compilation in them: {time.perf_counter() - began:.1f} s")
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for step in range(5, 5 + steps):
        training.step(step)
    training.look(5 + steps)  # waits for the device
    seconds = (time.perf_counter() - began) / steps
    cost = family("transformer").cost(training.config, Lengths.fixed(SEQUENCE))
    speed = spec.batch / seconds
    peak = peak_flops(device, "bf16")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {cost.parameters:,} parameters")
    print(f"{spec.micro_batch} x {SEQUENCE} tokens a pass, {spec.batch:,} a step, {seconds * 1e3:.1f} ms a step")
    print(f"{speed:,.0f} tokens/s, {cost.training_flops_per_unit / 1e9:.3f} GFLOP a token (attention in full)")
    if peak:
        print(f"MFU {speed * cost.training_flops_per_unit / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")
    print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")


def profile(training: Training) -> None:
    from torch.profiler import ProfilerActivity

    first = training.standing.progress.step
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for step in range(first, first + 3):
            training.step(step)
        training.look(first + 3)
    wall = time.perf_counter() - began
    averages = recorded.key_averages()
    busy = sum(event.self_device_time_total for event in averages) / 1e6
    print(averages.table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70))
    print(f"kernels took {busy:.3f} s of {wall:.3f} s")


if __name__ == "__main__":
    main()
