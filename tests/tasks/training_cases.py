"""Small trainings that the tests of the train step share: made-up examples, specs, and a runner for two processes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import Batches, fixed
from tasks.train.examples import Examples
from tasks.train.spec import TrainSpec

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 17


@dataclass(frozen=True)
class Ragged:
    """Examples whose targets are masked raggedly: some in part, every fifth wholly; the last is a partial window."""

    split: str
    sequence: int = 8
    count: int = 23

    @property
    def fingerprint(self) -> str:
        return f"ragged-{self.split}-{self.count}"

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for index in np.asarray(indices).tolist():
            random = np.random.default_rng([index, len(self.split)])
            # A pattern that can be learned: each token follows from the one before, with a little noise.
            tokens = (np.cumsum(random.integers(1, 3, self.sequence + 1)) + index) % VOCABULARY
            targets = tokens[1:].copy()
            targets[random.integers(3, self.sequence + 1) :] = -100
            if index % 5 == 3:
                targets[:] = -100
            rows.append((tokens[:-1], targets))
        return {"inputs": np.stack([r[0] for r in rows]), "targets": np.stack([r[1] for r in rows])}


def ragged_examples(spec: TrainSpec, validation: int = 7) -> Examples:
    train, held_out = Ragged("train", spec.sequence), Ragged("validation", spec.sequence)
    return Examples(
        Batches(train, spec.batch, spec.micro_batch, spec.seed),
        Batches(held_out, spec.sequence, spec.micro_batch, spec.seed),
        fixed(held_out, validation, spec.micro_batch),
        np.arange(VOCABULARY) % 3 + 1,
    )


def small_spec(**changes: Any) -> TrainSpec:
    """A two-layer transformer of a few thousand parameters, five micro-batches a step, the last one smaller."""
    base: dict[str, Any] = {
        "model": {"vocabulary": VOCABULARY, "width": 16, "depth": 2, "heads": 2},
        "sequence": 8,
        "stop_step": 12,
        "batch": 9 * 8,
        "micro_batch": 2,
        "seed": 5,
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"kind": "wsd", "warmup_steps": 2, "cooldown_steps": 4},
        "validation": {"every": 4, "examples": 7},
    }
    return TrainSpec.model_validate(base | changes)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def on_ranks(script: str, ranks: int, *arguments: str, more: Mapping[str, str] | None = None) -> str:
    """Runs a Python file of this folder on so many gloo processes through torchrun; its output."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *(str(Path(__file__).parent / script), *arguments),
    ]
    done = subprocess.run(command, env=environment(**(more or {})), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
