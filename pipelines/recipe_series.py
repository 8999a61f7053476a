"""The recipe's data section for numeric series and piano rolls."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.fields import Count, Number, Section


class SeriesData(Section):
    kind: Literal["series"]
    source: str | None = None
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    sequence: Count = Field(default=64, description="steps of a window")

    @property
    def unit(self) -> str:
        """What a target unit is."""
        return "step"
