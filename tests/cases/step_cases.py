"""Trainings in this process, and batches that spoil them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import ragged_examples

from reducible.models.families.registry import FAMILIES
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training, train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record


def training(spec: TrainSpec, work: Path, examples: TrainingData | None = None, **execution: Any) -> Training:
    record = Record(work / "record", "a")
    return Training(spec, Execution(**execution), examples or ragged_examples(spec), None, work, record, None)


def run(spec: TrainSpec, work: Path, examples: TrainingData | None = None, **execution: Any) -> TrainResult:
    record = Record(work / "record", "a")
    examples = examples or ragged_examples(spec)
    return train(spec, Execution(**execution), data=examples, start=None, work=work, record=record)


class Poisoned(Transformer):
    """The transformer, but a token of POISON makes the loss or its gradient not finite, or the loss very large."""

    POISON = 16

    def __init__(self, config: TransformerConfig, kind: str) -> None:
        super().__init__(config)
        self.kind = kind

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:
        hit = (batch["inputs"] == self.POISON).any()
        loss = super().forward(batch)
        weight = self.norm.weight[0]
        if not hit:
            return loss
        if self.kind == "loss":
            return loss._replace(nats=loss.nats * math.inf)
        if self.kind == "gradient":  # d/dw sqrt(w - w) is infinite, its value is 0
            return loss._replace(nats=loss.nats + (weight - weight.detach()).sqrt())
        return loss._replace(nats=loss.nats * 1000)


def poisoned(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    original = FAMILIES["transformer"]
    monkeypatch.setitem(FAMILIES, "transformer", replace(original, build=lambda config: Poisoned(config, kind)))


class PoisonAt:
    """The ragged batches without the poison token, but for one example of one micro-batch of one step."""

    def __init__(self, examples: TrainingData, step: int, micro_batch: int) -> None:
        self.batches, self.where = examples.train, (step, micro_batch)
        self.units = self.batches.units

    def micro_batches(self, step: int) -> list[Any]:
        return [(step, micro, indices) for micro, indices in enumerate(self.batches.micro_batches(step))]

    def fetch(self, key: Any) -> dict[str, np.ndarray]:
        step, micro, indices = key
        batch = self.batches.fetch(indices)
        batch["inputs"] = batch["inputs"] % Poisoned.POISON
        if (step, micro) == self.where:
            batch["inputs"][0, 0] = Poisoned.POISON
        return batch
