"""The task that makes a dataset of numeric series or piano rolls."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reducible.data.errors import DataError
from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.data.series import SplitBy, split_series, write_series
from reducible.data.series_files import Columns, NumericSeries, channel_names, is_roll, read_rolls, read_table
from reducible.tasks.dataset.input_files import FileSpec
from reducible.tasks.dataset.write_dataset import Naming, write_dataset
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.store import sha256_of
from reducible.tasks.workflow.task import Context

VERSION = 1


class TableSpec(Frozen):
    """Files by content, and what each of their columns holds."""

    files: tuple[FileSpec, ...]
    columns: tuple[str, ...]
    time: str | None
    series: str | None


class GeneratedSpec(Frozen):
    """The matrices of data/linear_gaussian.py."""

    A: tuple[tuple[float, ...], ...]
    B: tuple[tuple[float, ...], ...]
    C: tuple[tuple[float, ...], ...]
    D: tuple[tuple[float, ...], ...]
    series: int
    length: int
    seed: int


class SeriesSpec(Frozen):
    """Either files or generated; and how the series are split, standardised and cut into windows."""

    files: TableSpec | None
    generated: GeneratedSpec | None
    split: SplitBy
    validation_share: float
    test_share: float
    standardise: bool
    stride: int | None


class Places(Naming):
    """Execution: where this machine finds the inputs."""

    paths: Mapping[str, str]


def make_series(context: Context) -> None:
    """Takes no inputs: the files are named by content. Writes dataset.json and arrays (data/series.py)."""
    spec: SeriesSpec = context.spec
    places: Places = context.execution
    columns, series = _generated(spec.generated) if spec.generated else _read(spec, places)
    parts = split_series(series, spec.split, spec.validation_share, spec.test_share)
    written = write_series(parts, context.staging, columns, spec.standardise, places.source)
    content = {
        "kind": "series",
        "name": places.name,
        "source": places.source,
        "fingerprint": fingerprint([written["content"], written["mean"], written["deviation"], spec.stride]),
        "stride": spec.stride,
        "generated": spec.generated.model_dump(mode="json") if spec.generated else None,
        **written,
    }
    write_dataset(context, content, ("source", "fingerprint", "channels", "stride"), _note(content))


def _generated(spec: GeneratedSpec) -> tuple[list[str], Iterable[NumericSeries]]:
    model = LinearGaussianSeries(**spec.model_dump())
    return [f"x{number}" for number in range(model.channels)], model.draw()


def _read(spec: SeriesSpec, places: Places) -> tuple[list[str], list[NumericSeries]]:
    """Names of the channels and every series of every file, in the order of the files."""
    assert spec.files is not None
    columns = Columns(spec.files.columns, spec.files.time, spec.files.series)
    read: list[NumericSeries] = []
    names: list[str] | None = None
    for file in spec.files.files:
        path = Path(places.paths.get(file.name, file.name))
        if not path.is_file() or sha256_of(path) != file.sha256:
            raise DataError(f"{path}: changed since it was listed; run the command again")
        found, series = channel_names(path, columns), list(_series_of(path, file, columns))
        if names is not None and found != names:
            raise DataError(
                f"{path}: its columns are {', '.join(found)}; those of the files before: {', '.join(names)}"
            )
        names = found
        read += series
    assert names is not None
    seen: dict[tuple[str, str | None], int] = {}
    for one in read:
        seen[one.name, one.split] = seen.get((one.name, one.split), 0) + 1
        if seen[one.name, one.split] > 1:
            raise DataError(f"data.source: {places.source}: the series {one.name!r} occurs in several files")
    return names, read


def _series_of(path: Path, file: FileSpec, columns: Columns) -> Iterable[NumericSeries]:
    return read_rolls(path) if is_roll(path) else read_table(path, Path(file.name).stem, columns)


def _note(content: dict[str, Any]) -> str:
    lines = [
        f"| {split} | {counts['series']:,} | {counts['steps']:,} | {counts['missing']:,} |"
        for split, counts in content["splits"].items()
    ]
    note = "| split | series | steps | missing values |\n|---|---:|---:|---:|\n" + "\n".join(lines)
    if content["channels"] <= 20:
        rows = zip(content["columns"], content["mean"], content["deviation"], strict=True)
        note += "\n\n| channel | mean subtracted | deviation divided by |\n|---|---:|---:|\n" + "\n".join(
            f"| {name} | {mean:.6g} | {deviation:.6g} |" for name, mean, deviation in rows
        )
    return note
