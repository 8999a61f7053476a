"""Data of kind series: the recipe's section, and the task that turns it into a dataset."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from reducible.data import schemes
from reducible.data.hashes import InputFile
from reducible.data.known_entropy import KnownEntropy
from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.data.series import SplitBy
from reducible.data.series_files import Columns, channel_names, is_roll
from reducible.data.sources import files_of
from reducible.pipelines.dataset.data_section import DataSection
from reducible.pipelines.recipe.fields import Location, Number, Section, parse_number
from reducible.tasks.count import Count, Seed
from reducible.tasks.dataset import make_series
from reducible.tasks.dataset.input_files import by_content, paths_of, weight_of
from reducible.tasks.dataset.make_series import GeneratedSpec, Places, SeriesSpec, TableSpec
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


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
    seed: Seed = 0


class SeriesData(DataSection):
    """Steps of one or more channels."""

    paths = ("source",)

    kind: Literal["series"]
    source: Location | None = Field(
        default=None, description="CSV, TSV or Parquet (file, folder, glob), piano rolls (.json), builtin:nile ..."
    )
    generated: GeneratedSeries | None = None
    columns: tuple[str, ...] = Field(default=(), description="channels; default every column but time and series")
    time: str | None = Field(default=None, description="column of times, which grow within a series")
    series: str | None = Field(default=None, description="column that names the series of a row")
    split: SplitBy | None = Field(
        default=None, description="the end of every series validates, or whole series; default time (generated: series)"
    )
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    test_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    standardise: bool | None = Field(
        default=None, description="by mean and deviation of the train part; default yes (rolls and generated: no)"
    )
    sequence: Count = Field(default=64, description="steps of a window")
    stride: Count | None = Field(default=None, description="steps between the starts of training windows")

    @model_validator(mode="after")
    def _one_source(self) -> "SeriesData":
        if (self.source is None) == (self.generated is None):
            raise ValueError("give one of source (a file, folder, glob, builtin:nile) and generated")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        if self.stride is not None and self.stride > self.sequence:
            raise ValueError(f"stride {self.stride} would leave steps out between windows of {self.sequence}")
        if self.generated is not None and (self.columns or self.time or self.series):
            raise ValueError("columns, time and series belong to a file; leave them out")
        return self

    @property
    def may_test(self) -> bool:
        """Piano rolls say themselves whether they have a test split."""
        return self.test_share > 0 or str(self.source).endswith(".json")

    def facts(self, store: Store) -> dict[str, Any]:
        """The number of channels, from the header of the first file."""
        if self.generated is not None:
            return {"channels": _model(self.generated).channels}
        first = _files(self, store)[0]
        return {"channels": len(channel_names(Path(first.path), _columns(self)))}

    def known_entropy(self, content: Mapping[str, Any] | None) -> KnownEntropy | None:
        """In the units that models see: dividing a channel by its deviation takes the logarithm of that from a step."""
        if self.generated is None or self.standardise and content is None:
            return None
        length = self.generated.length
        if self.split == "time":
            length = max(1, round(self.validation_share * length))
        known = _model(self.generated).known_entropy(self.sequence, length)
        less = float(np.log(content["deviation"]).sum()) if content else 0.0
        best = None if known.best_loss is None else known.best_loss - less
        return replace(known, rate=known.rate - less, best_loss=best)

    def as_trained(self, base: str, config: Any, content: Mapping[str, Any], store: Store) -> Self:
        found = self.facts(store)["channels"]
        if found != config.channels:
            raise UserError(f"data.columns: {base} reads {config.channels} channels, the data have {found}")
        return self

    def dataset_task(self, name: str, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
        files: list[InputFile] = []
        table, generated = None, None
        if self.generated is not None:
            _model(self.generated)  # matrices that make no model are refused now
            generated = GeneratedSpec(**self.generated.model_dump(exclude={"kind"}))
        else:
            files = _files(self, store)
            columns = _columns(self)
            table = TableSpec(
                files=by_content(files),
                columns=columns.names,
                time=columns.time,
                series=columns.series,
            )
        rolls = _rolls(files)
        spec = SeriesSpec(
            files=table,
            generated=generated,
            split=self.split or ("series" if generated else "time"),
            validation_share=self.validation_share,
            test_share=self.test_share,
            standardise=self.standardise if self.standardise is not None else not (rolls or generated),
            stride=self.stride,
        )
        return Task(
            name="dataset",
            version=make_series.VERSION,
            run="reducible.tasks.dataset.make_series:make_series",
            spec=spec,
            label="dataset",
            execution=Places(
                name=name,
                source=schemes.shown(self.source or "generated:linear-gaussian"),
                paths=paths_of(files),
            ),
            weight=weight_of(files),
        )


def _rolls(files: list[InputFile]) -> bool:
    """Whether the files are piano rolls; they may not be mixed with tables."""
    kinds = {is_roll(Path(file.name)) for file in files}
    if len(kinds) > 1:
        raise UserError("data.source: mixes piano rolls (.json) and tables; name one of the two")
    return kinds == {True}


def _files(data: SeriesData, store: Store) -> list[InputFile]:
    """Every file of the source; never empty."""
    return files_of(str(data.source), "series", cache=store.root / "hashes")


def _columns(data: SeriesData) -> Columns:
    """As the recipe says, or as the source does if the recipe says nothing of columns."""
    if data.columns or data.time or data.series:
        return Columns(data.columns, data.time, data.series)
    decided = schemes.settings(str(data.source), "series")
    return Columns(decided.get("columns", ()), decided.get("time"), decided.get("series"))


def _model(generated: GeneratedSeries) -> LinearGaussianSeries:
    return LinearGaussianSeries(**generated.model_dump(exclude={"kind"}))
