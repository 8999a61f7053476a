"""A recipe of series becomes a dataset: facts known beforehand come true, and mistakes are one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from in_process import make

from reducible.data.errors import DataError
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.series_kind import SeriesDataset
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store

CSV = "day,shop,sold,price\n" + "".join(
    f"2024-01-{day:02d},{shop},{day * (2 if shop == 'b' else 1)},{'' if day == 5 else day / 2}\n"
    for day in range(1, 21)
    for shop in "ab"
)


def written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"kind": "series", **data}}))
    return path


def made(folder: Path, data: dict[str, Any]) -> tuple[SeriesDataset, dict[str, Any]]:
    """The dataset of the recipe, made in this process, and what was known before."""
    recipe, store = load_recipe(written(folder, data)), Store(folder / "root")
    facts, dataset = recipe.data.facts(store), recipe.data.dataset_task(recipe.name, store)
    make([dataset], store)
    return open_dataset(store.artifact("dataset", dataset.identity)), facts


def identity(folder: Path, data: dict[str, Any]) -> str:
    return load_recipe(written(folder, data)).data.dataset_task("toy", Store(folder / "root")).identity


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    (tmp_path / "shops.csv").write_text(CSV)
    return tmp_path


def test_a_csv_with_time_and_series(shops: Path) -> None:
    dataset, facts = made(shops, {"source": "shops.csv", "time": "day", "series": "shop", "sequence": 8})
    assert facts == {"channels": 2} and dataset.columns == ["sold", "price"]
    assert dataset.content["splits"]["validation"] == {"series": 2, "steps": 8, "missing": 0}
    assert dataset.content["splits"]["train"]["missing"] == 2
    examples = dataset.examples("series", "train", 8)
    batch = examples.batch(np.array([0]))
    # Said in the data's own units, the first window is the first eight days of the first shop.
    np.testing.assert_allclose(dataset.in_units(batch["values"])[0, :, 0], np.arange(1, 9), rtol=1e-5)
    train_b = np.arange(1, 17) * 2
    pooled = np.concatenate([np.arange(1, 17), train_b])
    np.testing.assert_allclose(dataset.content["mean"][0], pooled.mean())
    np.testing.assert_allclose(np.exp(dataset.log_scale()[0]), pooled.std())


def test_several_files_are_several_series(shops: Path) -> None:
    (shops / "logs").mkdir()
    for name in "xyz":
        (shops / "logs" / f"{name}.csv").write_text("v\n" + "".join(f"{n}\n" for n in range(10)))
    dataset, facts = made(shops, {"source": "logs/*.csv", "split": "series", "validation_share": 0.3})
    assert facts == {"channels": 1}
    assert sorted(dataset.content["series"]["train"] + dataset.content["series"]["validation"]) == ["x", "y", "z"]
    (shops / "logs" / "odd.csv").write_text("w\n1\n")
    with pytest.raises(DataError, match="x.csv: its columns are v; those of the files before: w"):
        made(shops, {"source": "logs/*.csv"})


def test_the_builtin_series_need_no_more_than_their_name(tmp_path: Path) -> None:
    dataset, facts = made(tmp_path, {"source": "builtin:co2"})
    assert facts == {"channels": 1} and dataset.columns == ["co2"]
    assert sum(split["missing"] for split in dataset.content["splits"].values()) == 59


def test_generated_series_are_not_standardised_and_name_their_model(tmp_path: Path) -> None:
    dataset, facts = made(tmp_path, {"generated": {"A": 0.5, "series": 10, "length": 6}})
    assert facts == {"channels": 1}
    assert dataset.generated is not None and dataset.generated.A == ((0.5,),)
    assert (dataset.content["mean"], dataset.content["deviation"]) == ([0.0], [1.0])
    assert dataset.content["splits"]["validation"]["series"] == 2


def test_rolls_keep_their_splits_and_are_not_standardised(tmp_path: Path) -> None:
    pieces = {"train": [[[60], [62]]], "valid": [[[64]]], "test": [[[65, 70]]]}
    (tmp_path / "rolls.json").write_text(json.dumps(pieces))
    dataset, facts = made(tmp_path, {"source": "rolls.json"})
    assert facts == {"channels": 88}
    batch = dataset.examples("series", "test", 4).batch(np.array([0]))
    assert np.flatnonzero(batch["values"][0, 0]).tolist() == [44, 49]


def test_what_makes_another_dataset_and_what_does_not(shops: Path) -> None:
    base = {"source": "shops.csv", "time": "day", "series": "shop"}
    same = identity(shops, base)
    assert identity(shops, base | {"sequence": 16}) == same, "windows are cut when the dataset is opened"
    others = [
        base | {"columns": ["sold"]},
        base | {"split": "series"},
        base | {"stride": 2},
        base | {"standardise": False},
    ]
    assert len({same, *(identity(shops, other) for other in others)}) == 5
    (shops / "shops.csv").write_text(CSV.replace("2024", "2025"))
    assert identity(shops, base) != same


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "give one of source"),
        ({"source": "shops.csv", "generated": {}}, "give one of source"),
        ({"source": "none.csv"}, "none.csv does not exist"),
        ({"source": "shops.csv", "columns": ["sole"]}, "data.columns: .*shops.csv has no column 'sole'"),
        ({"source": "shops.csv", "stride": 65}, "stride 65 would leave steps out"),
        ({"source": "builtin:nil"}, "builtin:nil holds no series; .* did you mean builtin:nile"),
        ({"source": "builtin:nile", "validation_share": 0.6, "test_share": 0.4}, "nothing to train on"),
        ({"generated": {"A": 1}}, "data.generated.A: its largest eigenvalue is 1"),
        ({"generated": {}, "columns": ["x"]}, "columns, time and series belong to a file"),
        ({"source": "builtin:nile", "window": 3}, "window"),
    ],
)
def test_mistakes_are_one_line(shops: Path, data: dict[str, Any], said: str) -> None:
    with pytest.raises((UserError, DataError), match=said) as error:
        recipe, store = load_recipe(written(shops, data)), Store(shops / "root")
        recipe.data.facts(store)
        recipe.data.dataset_task(recipe.name, store)
    assert "\n" not in str(error.value)
