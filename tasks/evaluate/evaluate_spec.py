"""What an evaluation is (EvaluateSpec, identity), what it gives back, and how a sample is asked for."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reducible.tasks.count import Count

VERSION = 2  # of the task; a change of what it computes raises it


class EvaluateSpec(BaseModel):
    """Settings of every kind of data; each kind reads those that mean something to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    split: Literal["validation", "test"] = "validation"
    units: Count | None = 4_000_000
    """Target units to evaluate at most, spread over the split. None: all."""
    samples: int = Field(default=3, ge=0)
    """Samples, examples or forecasts shown."""
    sample_tokens: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)
    gradient_flow: bool = False
    """text, recurrent: measure how far back in time gradients reach (models/gradient_flow.py)."""
    decoded: Count | None = 1000
    """pairs: sentences translated by search for BLEU and its like. None: all."""
    beam: int = Field(default=5, ge=1)
    """pairs: hypotheses kept in search; 1 is greedy."""
    length_penalty: float = Field(default=1.0, ge=0)
    """pairs: exponent of the length that scores are divided by (models/generate/beam_search.py)."""
    bleu_tokenize: Literal["13a", "none", "char", "intl", "zh"] = "13a"
    """pairs: sacreBLEU's tokenisation, of those that need no other package; none for text that is tokenised already."""
    importance_samples: int = Field(default=100, ge=1)
    """sentences, series: K of the importance-weighted estimate of the likelihood."""
    horizon: int = Field(default=24, ge=1)
    """series: steps forecast."""


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
