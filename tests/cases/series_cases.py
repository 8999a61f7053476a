"""Small datasets of series, made by the task that makes them, and trained models that are known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.tasks.dataset.input_files import FileSpec
from reducible.tasks.dataset.make_series import GeneratedSpec, Places, SeriesSpec, TableSpec, make_series
from reducible.tasks.workflow.store import sha256_of


def generated(folder: Path, standardise: bool = False, **keys: Any) -> Any:
    """The dataset of a linear-Gaussian source."""
    from dataclasses import asdict

    source = asdict(LinearGaussianSeries(**keys))
    return _made(folder, None, GeneratedSpec(**source), {}, "series", standardise)


def from_csv(folder: Path, text: str, split: str = "time", standardise: bool = True, **columns: Any) -> Any:
    """The dataset of one CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "table.csv"
    file.write_text(text)
    table = TableSpec(
        files=(FileSpec(name="table.csv", sha256=sha256_of(file), size=file.stat().st_size),),
        columns=columns.get("columns", ()),
        time=columns.get("time"),
        series=columns.get("series"),
    )
    return _made(folder, table, None, {"table.csv": str(file)}, split, standardise)


def rolls(folder: Path, content: str) -> Any:
    """The dataset of a file of piano rolls."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rolls.json"
    file.write_text(content)
    table = TableSpec(
        files=(FileSpec(name="rolls.json", sha256=sha256_of(file), size=file.stat().st_size),),
        columns=(),
        time=None,
        series=None,
    )
    return _made(folder, table, None, {"rolls.json": str(file)}, "series", False)


def _made(folder: Path, files: Any, source: Any, paths: dict[str, str], split: str, standardise: bool) -> Any:
    from reducible.tasks.dataset.dataset import open_dataset

    spec = SeriesSpec(
        files=files,
        generated=source,
        split=split,
        validation_share=0.25,
        test_share=0.0,
        standardise=standardise,
        stride=None,
    )
    staging = folder / "dataset"
    staging.mkdir(parents=True)
    context = SimpleNamespace(
        spec=spec,
        execution=Places(name="made", source="made", paths=paths),
        staging=staging,
        work=folder,
        attempt="1",
        label="data made",
        tags={},
        inputs={},
    )
    make_series(context)
    return open_dataset(staging)


def table_of(values: np.ndarray) -> str:
    """CSV with an empty cell for NaN."""
    columns = [f"x{number}" for number in range(values.shape[1])]
    rows = [",".join("" if np.isnan(value) else repr(float(value)) for value in row) for row in values]
    return "\n".join([",".join(columns), *rows]) + "\n"
