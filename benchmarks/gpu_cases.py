"""What the GPU benchmarks share: made-up examples of one length, a training of each family on them, one JSON file."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from reducible.data.batches import Batches
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training
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
LARGEST = {"linear-gaussian": 64}
"""Widths that a family is cut to: a filter's covariances are dense, and nobody has hundreds of latents."""


class MadeUp:
    """Random examples of one length, every unit of which is a target."""

    split, fingerprint = "train", "made up"

    def __init__(self, reads: str, length: int, vocabulary: int = VOCABULARY) -> None:
        self.reads, self.sequence, self.vocabulary = reads, length, vocabulary

    def __len__(self) -> int:
        return 4096

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows, random = len(indices), np.random.default_rng(indices[0])
        if self.reads == "series":
            shape = (rows, self.sequence, CHANNELS)
            values = random.integers(0, 2, shape).astype(np.float32)
            return {"values": values, "observed": np.ones(shape, bool), "steps": np.ones(shape[:2], bool)}
        tokens = random.integers(0, self.vocabulary, (rows, self.sequence + 1))
        batch = {"inputs": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
        if self.reads == "pairs":
            batch |= {"source": tokens[:, 1:].copy(), "source_lengths": np.full(rows, self.sequence)}
        return batch

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(batch["steps" if self.reads == "series" else "targets"].size)


@dataclass(frozen=True)
class Shape:
    """A model and its steps: micro_batches passes over rows x length units each."""

    family: str
    config: Any
    length: int
    rows: int
    micro_batches: int
    precision: str

    @classmethod
    def of_family(cls, family: str, width: int, length: int, rows: int, precision: str) -> "Shape":
        """The family's own shape at that width, one pass a step."""
        kind = FAMILIES[family]
        width = min(width, LARGEST.get(family, width))
        return cls(family, kind.config(**FACTS[kind.reads]).scaled(width), length, rows, 1, precision)

    @property
    def units(self) -> int:
        """Target units of a step."""
        return self.rows * self.length * self.micro_batches

    @property
    def lengths(self) -> Lengths:
        return Lengths.fixed(self.length, self.length if FAMILIES[self.family].reads == "pairs" else 0)


@contextmanager
def training(shape: Shape, **execution: Any) -> Iterator[Training]:
    """A training of that shape on this device, before its first step."""
    spec = TrainSpec(
        family=shape.family,
        model={field.name: getattr(shape.config, field.name) for field in fields(shape.config)},
        sequence=shape.length,
        stop_step=1_000_000,
        batch=shape.units,
        micro_batch=shape.rows,
        precision=shape.precision,
    )
    examples = MadeUp(FAMILIES[shape.family].reads, shape.length, getattr(shape.config, "vocabulary", VOCABULARY))
    batches = Batches(examples, spec.batch, spec.micro_batch, spec.seed)
    data = TrainingData(batches, batches, [], None, shape.lengths)
    with TemporaryDirectory() as folder:
        work, record = Path(folder), Record(Path(folder), "benchmark")
        found = Training(spec, Execution(**execution), data, None, work, record, 6e-4)
        try:
            yield found
        finally:
            found.checkpoints.close()


def run(training: Training, first: int, last: int) -> None:
    """Steps first to last - 1; returns when the device is done."""
    for step in range(first, last):
        training.step(step)
    training.look(last)


def profiled(training: Training, first: int) -> tuple[float, float, Any]:
    """One step under the profiler: seconds that kernels ran (on a CPU, operators), seconds in all, the averages."""
    on_gpu = training.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as recorded:
        began = time.perf_counter()
        run(training, first, first + 1)
        wall = time.perf_counter() - began
    averages = recorded.key_averages()
    # Operators carry the time of their kernels, which are listed too.
    counted = [event for event in averages if not on_gpu or event.device_type != DeviceType.CPU]
    busy = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in counted)
    return busy / 1e6, wall, averages


def device_facts() -> dict[str, Any]:
    """Where numbers come from: device, driver's memory, versions."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": "CPU"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def write(file: Path | None, content: dict[str, Any]) -> None:
    """Called after every row: whoever is stopped leaves what was measured."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n")
