"""How far a training is, and its result."""

import math
from dataclasses import dataclass, field

from reducible.models.cost.ledger import Cost


@dataclass(frozen=True)
class TrainResult:
    """The result of a training. Losses in nats per target unit; units, flops and seconds since step 0 of the trunk."""

    status: str
    """finished or diverged."""
    step: int
    units: int
    flops: float
    parameters: int
    parameters_without_embeddings: int
    train_loss: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None
    learning_rate: float
    seconds: float
    units_per_second: float
    reason: str | None = None
    base_loss: float | None = None
    """Fine-tuning: the validation loss before the first step."""


@dataclass
class Progress:
    """What a resumed training needs besides tensors. Order and randomness have no state (contracts 2 and 3)."""

    step: int = 0
    units: int = 0
    seconds: float = 0.0
    stepping: float = 0.0
    """Seconds spent in steps only, without validation, checkpoints and start-up."""
    first_loss: float | None = None
    """Loss of the untrained model."""
    validated: float | None = None
    """Validation loss at exactly this step, if it was measured there."""
    base_loss: float | None = None
    """Validation loss of the base that is fine-tuned, before the first step."""


@dataclass
class Standing:
    """Progress and the metrics that were last measured."""

    progress: Progress = field(default_factory=Progress)
    validation: dict[str, float] = field(default_factory=dict)
    """val/..."""
    losses: dict[str, float] = field(default_factory=dict)
    """train/..."""

    def result(
        self, cost: Cost, status: str, reason: str | None, *, learning_rate: float, seconds: float
    ) -> TrainResult:
        progress = self.progress
        losses = {name: loss for name, loss in {**self.losses, **self.validation}.items() if math.isfinite(loss)}
        return TrainResult(
            status=status,
            step=progress.step,
            units=progress.units,
            flops=progress.units * cost.training_flops_per_unit,
            parameters=cost.parameters,
            parameters_without_embeddings=cost.parameters_without_embeddings,
            train_loss=losses.get("train/loss"),
            validation_loss=losses.get("val/loss"),
            validation_bits_per_byte=losses.get("val/bits_per_byte"),
            learning_rate=learning_rate,
            seconds=seconds,
            units_per_second=progress.units / progress.stepping if progress.stepping else 0.0,
            reason=reason,
            base_loss=progress.base_loss,
        )
