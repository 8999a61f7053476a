"""The recipe's data section for numeric series and piano rolls."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from reducible.pipelines.recipe.fields import Number, Section, parse_number
from reducible.tasks.count import Count


def _rows(value: Any) -> Any:
    """A matrix as YAML gives it; a number alone is a matrix of one."""
    if isinstance(value, int | float | str):
        value = [[value]]
    if isinstance(value, list | tuple):
        return [[parse_number(cell) for cell in row] if isinstance(row, list | tuple) else row for row in value]
    return value


Matrix = Annotated[tuple[tuple[float, ...], ...], BeforeValidator(_rows)]


class GeneratedSeries(Section):
    """z_t = A z_t-1 + B e_t, x_t = C z_t + D psi_t (data/linear_gaussian.py); the default is an AR(0.9) plus noise."""

    kind: Literal["linear-gaussian"] = "linear-gaussian"
    A: Matrix = ((0.9,),)
    B: Matrix = ((1.0,),)
    C: Matrix = ((1.0,),)
    D: Matrix = ((1.0,),)
    series: Count = 512
    length: Count = 100
    seed: int = Field(default=0, ge=0)


class SeriesData(Section):
    """Steps of one or more channels."""

    kind: Literal["series"]
    source: str | None = Field(
        default=None, description="CSV, TSV or Parquet (file, folder, glob), piano rolls (.json), builtin:nile ..."
    )
    generated: GeneratedSeries | None = None
    columns: tuple[str, ...] = Field(default=(), description="channels; default every column but time and series")
    time: str | None = Field(default=None, description="column that must grow within a series; no channel")
    series: str | None = Field(default=None, description="column that names the series of a row; no channel")
    split: Literal["time", "series"] | None = Field(
        default=None, description="the end of every series validates, or whole series; default time (generated: series)"
    )
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    test_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    standardise: bool | None = Field(
        default=None, description="by mean and deviation of the train part; default yes (rolls and generated: no)"
    )
    sequence: Count = Field(default=64, description="steps of a window")
    stride: Count | None = Field(default=None, description="steps between the starts of training windows")

    @property
    def may_test(self) -> bool:
        """Whether a dataset of this recipe can have a test split; piano rolls say themselves whether they have one."""
        return self.test_share > 0 or str(self.source).endswith(".json")

    @property
    def unit(self) -> str:
        """What a target unit is."""
        return "step"

    @model_validator(mode="after")
    def _one_source(self) -> "SeriesData":
        if (self.source is None) == (self.generated is None):
            raise ValueError("give one of source (a file, folder, glob, builtin:nile) and generated")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        if self.stride is not None and self.stride > self.sequence:
            raise ValueError(f"stride {self.stride} would leave steps out between windows of {self.sequence}")
        if self.generated is not None and (self.columns or self.time or self.series):
            raise ValueError("columns, time and series are of a file; leave them out")
        return self
