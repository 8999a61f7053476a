"""The recipe's data section for pairs: a source text and the target text that belongs to it."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.fields import Count, Number, Section


class PairData(Section):
    kind: Literal["pairs"]
    source: str | None = None
    validation: str | None = None
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    sequence: Count = Field(default=64, description="longest target, its end included")

    @property
    def unit(self) -> str:
        """What a target unit is."""
        return "token"
