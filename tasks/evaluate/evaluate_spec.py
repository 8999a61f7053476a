"""What all evaluations share: their settings (EvaluateSpec, identity), their result, and the options of a sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from reducible.tasks.count import Count, Seed
from reducible.tasks.workflow.frozen import Frozen

if TYPE_CHECKING:
    from reducible.models.contract import Family

VERSION = 3  # of the task; raised when what it computes changes


class EvaluateSpec(Frozen):
    """Settings of every evaluation. Each kind of data adds its own, so that those of another never make it stale."""

    WHOLE: ClassVar[tuple[str, ...]] = ("units",)
    """Names of the limits. `reducible evaluate` sets them to None, which means the whole split."""

    split: Literal["validation", "test"] = "validation"
    units: Count | None = 4_000_000
    """The most target units to evaluate, spread over the split. None: all."""
    samples: int = Field(default=3, ge=0)
    """The number of samples, examples or forecasts shown."""
    seed: Seed = 0

    def check(self, family: "Family") -> None:
        """Raises UserError if a setting does not apply to that family."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model."""

    numbers: dict[str, Any]
    """The content of evaluation.json, whose numbers become metrics in MLflow. It has `units` and `loss` (nats per
    target unit; -ELBO for a family that is trained on it)."""
    headline: str
    """One line for the terminal and the summary, such as `2.1 nats per token, perplexity 8.2`."""
    note: str
    """Markdown."""


@dataclass(frozen=True)
class SampleOptions:
    """The options of `reducible sample`."""

    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    beam: int = 5
