"""The task that turns a recipe's series into a dataset, and what models must know of it beforehand."""

from pathlib import Path
from typing import Any

from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.data.series_files import BUILTIN, Columns, builtin_path, channel_names, is_roll
from reducible.data.sources import InputFile, Source, listing
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.recipe.series_section import GeneratedSeries, SeriesData
from reducible.tasks.dataset import make_series as series
from reducible.tasks.dataset.make_series import GeneratedSpec, Places, SeriesSpec, TableSpec
from reducible.tasks.dataset.tokenise import FileSpec
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


def series_facts(data: SeriesData, store: Store) -> dict[str, Any]:
    """The number of channels, from the header of the first file."""
    if data.generated is not None:
        return {"channels": _model(data.generated).channels}
    first = _files(data, store)[0]
    return {"channels": len(channel_names(Path(first.path), _columns(data)))}


def series_dataset_task(recipe: Recipe, store: Store) -> Task:
    """Lists and hashes the files (hashes are remembered under the root)."""
    data = recipe.data
    assert isinstance(data, SeriesData)
    files: list[InputFile] = []
    table, generated = None, None
    if data.generated is not None:
        _model(data.generated)  # matrices that make no model are said now
        generated = GeneratedSpec(**data.generated.model_dump(exclude={"kind"}))
    else:
        files = _files(data, store)
        columns = _columns(data)
        table = TableSpec(
            files=tuple(FileSpec(name=file.name, size=file.size, sha256=file.sha256) for file in files),
            columns=columns.names,
            time=columns.time,
            series=columns.series,
        )
    rolls = _rolls(files)
    spec = SeriesSpec(
        files=table,
        generated=generated,
        split=data.split or ("series" if generated else "time"),
        validation_share=data.validation_share,
        test_share=data.test_share,
        standardise=data.standardise if data.standardise is not None else not (rolls or generated),
        stride=data.stride,
    )
    return Task(
        name="dataset",
        version=series.VERSION,
        run="reducible.tasks.dataset.make_series:make_series",
        spec=spec,
        label="dataset",
        execution=Places(
            name=recipe.name,
            source=data.source or "generated:linear-gaussian",
            paths={file.name: file.path for file in files},
        ),
        weight=float(sum(file.size for file in files)),
    )


def _rolls(files: list[InputFile]) -> bool:
    """Whether the files are piano rolls; they may not be mixed with tables."""
    kinds = {is_roll(Path(file.name)) for file in files}
    if len(kinds) > 1:
        raise UserError("data.source: piano rolls (.json) and tables together; name one kind")
    return kinds == {True}


def _files(data: SeriesData, store: Store) -> list[InputFile]:
    """Every file of the source; never empty."""
    location = str(data.source)
    if location.startswith("builtin:"):
        location = str(builtin_path(location.removeprefix("builtin:")))
    return listing(Source(location), store.root / "hashes")


def _columns(data: SeriesData) -> Columns:
    """As the recipe says; a built-in series knows its own."""
    if str(data.source).startswith("builtin:") and not (data.columns or data.time or data.series):
        _, column, time = BUILTIN[str(data.source).removeprefix("builtin:")]
        return Columns((column,), time)
    return Columns(data.columns, data.time, data.series)


def _model(generated: GeneratedSeries) -> LinearGaussianSeries:
    return LinearGaussianSeries(**generated.model_dump(exclude={"kind"}))
