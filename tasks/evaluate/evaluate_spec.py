"""What all evaluations share: settings (EvaluateSpec, identity), what they give back, how a sample is asked for."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from reducible.tasks.count import Count

VERSION = 3  # of the task; a change of what it computes raises it


class EvaluateSpec(BaseModel):
    """Settings of every evaluation. Each kind of data adds its own, so that another's never make it stale."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    WHOLE: ClassVar[tuple[str, ...]] = ("units",)
    """Limits; None of them means all of the split, as `reducible evaluate` takes it."""

    split: Literal["validation", "test"] = "validation"
    units: Count | None = 4_000_000
    """Target units to evaluate at most, spread over the split. None: all."""
    samples: int = Field(default=3, ge=0)
    """Samples, examples or forecasts shown."""
    seed: int = Field(default=0, ge=0)

    def check(self, family: str) -> None:
        """Raises UserError for a setting that a model of that family cannot take."""


@dataclass(frozen=True)
class Evaluation:
    """What a kind of data measured of a model."""

    numbers: dict[str, Any]
    """Goes to evaluation.json; numbers among it become metrics in MLflow. Has `loss` (nats per target unit,
    -ELBO where that is the loss) and `units`."""
    headline: str
    """One line for the terminal and the summary, such as `2.1 nats per token, perplexity 8.2`."""
    note: str
    """Markdown."""


@dataclass(frozen=True)
class SampleOptions:
    """`reducible sample`: how much of what, and by which chance."""

    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    beam: int = 5
