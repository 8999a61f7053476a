"""What a training is (TrainSpec, identity) and how it is carried out (Execution, not identity)."""

from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reducible.models.step_settings import Adaptation, Checkpointing, Precision, Strategy
from reducible.tasks.count import Number, Seed, Share
from reducible.tasks.train.optimizers.registry import AnyOptimizer, default_settings
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.identity import canonical, equal

VERSION = 3  # of the task; raised when what it computes changes


ScheduleKind = Literal["constant", "wsd", "cosine"]


class ScheduleShape(Frozen):
    """The learning rate over the run, as a share of its peak (schedule.py).

    After a linear warm-up, wsd falls linearly to final_fraction over a cooldown before the stop. cosine falls from the
    end of the warm-up to the stop.
    """

    kind: ScheduleKind = "wsd"
    final_fraction: Annotated[Number, Field(ge=0, le=1)] = 0.0


class ScheduleSpec(ScheduleShape):
    warmup_steps: int = Field(default=0, ge=0)
    cooldown_steps: int = Field(default=0, ge=0)


class ValidationSpec(Frozen):
    """The loss on fixed examples of the validation split, measured at intervals of `every` steps and at the last."""

    every: int | None = Field(default=None, ge=1)
    examples: int = Field(default=64, ge=1)
    """The number of examples of full length. Ragged examples are as many as have the same number of target units."""


class AdapterSettings(Frozen):
    """Low-rank updates of frozen weights."""

    rank: int = Field(default=8, ge=1, le=2**20)
    """r of y = x W0 + (alpha / r) x L1 L2."""
    dropout: Share = 0.0
    """Dropout on the input of L1."""
    targets: tuple[str, ...] = ()
    """Patterns for the names of the adapted weights. Empty: the matrices of the hidden layers."""
    merge: Literal["fp32", "bf16"] = "fp32"
    """The number format of the merged model."""


class MethodSpec(AdapterSettings):
    """How a base model is adapted: all of its weights (full), or low-rank updates of frozen ones (lora, qlora)."""

    kind: Adaptation
    alpha: float = Field(default=16.0, gt=0)


class StepSettings(Frozen):
    """Settings of the train step that a recipe and a spec write alike."""

    optimizer: AnyOptimizer = default_settings()
    precision: Precision = "fp32"
    """Format of matrix products and activations. Weights, moments and gradient sums are fp32. fp16 scales the loss."""
    seed: Seed = 0
    deterministic: bool = False
    """Use deterministic kernels, so that killed and resumed equals never killed on a GPU too."""
    spike_guard: Annotated[Number, Field(gt=0)] | None = None
    """Skip a step if its loss or gradient norm is this many deviations above the recent mean."""


class TrainSpec(StepSettings):
    """One stretch of training; all counts are in steps of the whole run.

    With start_step > 0 it continues the input artifact `start`, an earlier stretch that stopped there.
    """

    family: str = "transformer"
    family_code: str | None = Field(default=None, title="the family's code")
    """The identity of the family's code, if it is outside this package (models/families/outside.py)."""
    model: dict[str, Any]
    """The family's configuration, vocabulary included."""
    sequence: int = Field(ge=1)
    mask_documents: bool = False
    start_step: int = Field(default=0, ge=0)
    stop_step: int = Field(ge=1)
    batch: int = Field(ge=1)
    """Target units per optimizer step, for any world size."""
    micro_batch: int = Field(ge=1)
    """Sequences per forward pass."""
    horizon: int | None = Field(default=None, ge=1)
    """Steps of the run of which the family's own schedules take their shares (Model.at_step). None: stop_step. The
    segments and branches of a trunk have one horizon, so that a branch goes on as its trunk did."""
    schedule: ScheduleSpec = ScheduleSpec()
    validation: ValidationSpec = ValidationSpec()
    method: MethodSpec | None = None
    """Fine-tuning of the input artifact `base`. None: training from nothing."""

    @property
    def scheduled_steps(self) -> int:
        return self.horizon or self.stop_step

    def entering(self) -> dict[str, Any]:
        """The family's configuration without its defaults and without the keys that the data decide."""
        # The import loads torch, which a reader of specs does not need.
        from reducible.models.families.registry import family

        kind = family(self.family)
        defaults = {field.name: field.default for field in fields(kind.config) if field.default is not MISSING}
        decided = kind.batch.decided
        return {
            "model": {
                key: value
                for key, value in self.model.items()
                if key not in decided and not (key in defaults and equal(canonical(value), canonical(defaults[key])))
            }
        }

    @model_validator(mode="after")
    def _steps_agree(self) -> "TrainSpec":
        if self.stop_step <= self.start_step:
            raise ValueError(f"stop_step {self.stop_step} must be after start_step {self.start_step}")
        if self.schedule.kind == "wsd" and self.schedule.cooldown_steps > self.stop_step - self.start_step:
            raise ValueError(
                f"schedule.cooldown_steps {self.schedule.cooldown_steps} must fit between start_step "
                f"{self.start_step} and stop_step {self.stop_step}: the steps before start_step have no cooldown"
            )
        return self


class Workers(Frozen):
    """Where and how a training runs."""

    workers: int = Field(default=1, ge=1, le=2**20)
    cpus_per_worker: Annotated[Number, Field(gt=0)] = 1
    gpus_per_worker: Annotated[Number, Field(ge=0)] = 0
    strategy: Strategy = "none"
    """How several workers keep their parameters equal. With more than one worker, none means ddp."""
    compile: bool = False
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints that are kept."""


class Execution(Workers):
    """How a training is carried out; none of it is identity."""

    checkpointing: Checkpointing = "none"
    """Activation checkpointing: how much is computed again in backward (models/layers/activation_checkpointing.py)."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. None: one at the end."""
    log_every: int = Field(default=10, ge=1)
