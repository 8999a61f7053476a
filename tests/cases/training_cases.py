"""Small trainings that the tests of the train step share: made-up examples, specs, and a runner for two processes."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import forked_ranks
import numpy as np
import torch

from reducible.data.batches import Batches, fixed
from reducible.models.cost.ledger import Lengths
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training
from reducible.tasks.train.parallel import full
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

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
        """What order is keyed by."""
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

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(np.count_nonzero(batch["targets"] != -100))


def ragged_examples(spec: TrainSpec, validation: int = 7) -> TrainingData:
    train, held_out = Ragged("train", spec.sequence), Ragged("validation", spec.sequence)
    return TrainingData(
        Batches(train, spec.batch, spec.micro_batch, spec.seed),
        Batches(held_out, spec.sequence, spec.micro_batch, spec.seed),
        fixed(held_out, validation, spec.micro_batch),
        np.arange(VOCABULARY) % 3 + 1,
        Lengths.fixed(spec.sequence),
    )


FIRST_SCALE = 2.0**22
"""A loss scale from which the small model's gradients overflow in fp16 for a few steps."""
CASES = ("ragged", "silent")
"""silent: every second micro-batch, all that rank 1 of 2 gets, has no target at all."""


def examples_of(case: str, spec: TrainSpec) -> TrainingData:
    examples = ragged_examples(spec)
    return examples if case == "ragged" else replace(examples, train=Silent(examples.train))


class Silent:
    """Batches in which the micro-batches at odd places hold masked examples only. micro_batch must divide the step."""

    def __init__(self, batches: Batches) -> None:
        self.fetch, self.units, self.size = batches.fetch, batches.units, batches._micro_batch

    def micro_batches(self, step: int) -> list[np.ndarray]:
        loud = [i for i in range(step, step + 30) if i % 5 != 3][:5]
        all_ = np.array([loud[0], loud[1], 3, 8, loud[2], loud[3], 13, 18, loud[4]]) % 23
        all_[[2, 3, 6, 7]] = 3, 8, 13, 18
        return [all_[at : at + self.size] for at in range(0, len(all_), self.size)]


class Interrupted(Exception):
    pass


class Logged:
    """Batches that write down the examples they are asked for and end the training before a step."""

    def __init__(self, batches: Batches, stop: int, log: Path | None) -> None:
        self.batches, self.stop, self.log, self.units = batches, stop, log, batches.units

    def micro_batches(self, step: int) -> list[np.ndarray]:
        if step == self.stop:
            raise Interrupted
        self.step = step
        return self.batches.micro_batches(step)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{self.step} {indices.tolist()}\n")
        return self.batches.fetch(indices)


def interrupted_at(examples: TrainingData, step: int, log: Path | None = None) -> TrainingData:
    return replace(examples, train=Logged(examples.train, step, log))


def gradients_and_weights(
    spec: TrainSpec,
    execution: Execution,
    examples: TrainingData,
    work: Path,
    steps: int = 4,
    base: Path | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Runs a few steps: the whole gradient of each, as it was before clipping, and the weights after the last."""
    training = Training(spec, execution, examples, None, work, Record(work / "record", "x"), None, base)
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for step in range(steps):
        update = training.step.optimizer.step

        def keep(*arguments: Any, step: int = step, update: Any = update) -> None:
            gradients = {name: full(p.grad).clone() for name, p in training.model.named_parameters() if p.requires_grad}
            seen[f"gradient {step}"] = gradients
            update(*arguments)

        training.step.optimizer.step = keep  # type: ignore[method-assign]
        training.step(step)
        training.step.optimizer.step = update  # type: ignore[method-assign]
    seen["weights"] = {name: full(p).clone() for name, p in training.model.named_parameters()}
    training.checkpoints.close()
    return seen


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
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cases'}", "OMP_NUM_THREADS": "1"} | more


def on_ranks(script: str, ranks: int, *arguments: str, more: Mapping[str, str] | None = None) -> str:
    """Runs a Python file of this folder, or a whole path, on so many gloo processes; its output."""
    command = [str(Path(__file__).parent / script), *arguments]
    status, said = forked_ranks.run(ranks, command, environment(**(more or {})))
    assert status == 0, said
    return said


def alone(script: str, *arguments: str) -> int:
    """Runs a Python file of this folder in a process of its own, which may kill itself; its exit status."""
    status, said = forked_ranks.run(1, [str(Path(__file__).parent / script), *arguments], environment())
    assert status in (0, -signal.SIGKILL), said
    return status
