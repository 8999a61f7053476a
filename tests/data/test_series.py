"""Series from files, from packages and from a known model; splits, standardisation and windows."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.data import schemes
from reducible.data.batches import fixed
from reducible.data.buckets import Buckets
from reducible.data.errors import DataError
from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.data.series import SPLITS, Series, split_series, write_series
from reducible.data.series_files import (
    Columns,
    NumericSeries,
    channel_names,
    read_rolls,
    read_table,
)


def table(path: Path, text: str, **columns: object) -> list[NumericSeries]:
    path.write_text(text)
    return list(read_table(path, path.stem, Columns(**columns)))  # type: ignore[arg-type]


def dataset(
    folder: Path,
    series: list[NumericSeries],
    by: str = "time",
    validation: float = 0.25,
    test: float = 0.0,
    standardise: bool = True,
    **content: object,
) -> dict[str, object]:
    parts = split_series(series, by, validation, test)  # type: ignore[arg-type]
    columns = [f"c{number}" for number in range(series[0].values.shape[1])]
    written = write_series(parts, folder, columns, standardise, "made-up")
    whole = {"kind": "series", "stride": None} | written | content
    (folder / "dataset.json").write_text(json.dumps(whole))
    return whole


# Files ---------------------------------------------------------------------------------------------------------------


def test_columns_time_series_and_missing_values_of_a_csv(tmp_path: Path) -> None:
    text = "day,shop,sold,price\n2024-01-31,b,1,2.5\n2024-01-31,a,7,\n2024-02-01,b,NaN,-1e3\n\n2024-02-02,a, 8 ,NA\n"
    found = table(tmp_path / "shops.csv", text, time="day", series="shop")
    assert [one.name for one in found] == ["b", "a"]
    np.testing.assert_array_equal(found[0].values, [[1, 2.5], [np.nan, -1000]])
    np.testing.assert_array_equal(found[1].values, [[7, np.nan], [8, np.nan]])
    (chosen,) = table(tmp_path / "shops.csv", text, names=("price",))
    np.testing.assert_array_equal(chosen.values, [[2.5], [np.nan], [-1000], [np.nan]])
    assert chosen.name == "shops"


def test_parquet_tsv_and_gz_say_the_same_as_csv(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"t": pandas.date_range("2020", periods=5), "x": [1.5, None, 3.0, 4.0, -2.0], "n": range(5)}
    )
    frame.to_csv(tmp_path / "f.csv", index=False)
    frame.to_csv(tmp_path / "f.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "f.parquet", index=False)
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress((tmp_path / "f.csv").read_bytes()))
    for name in ("f.csv", "f.tsv", "f.parquet", "f.csv.gz"):
        columns = Columns(time="t")
        (one,) = read_table(tmp_path / name, "f", columns)
        np.testing.assert_array_equal(one.values, frame[["x", "n"]].to_numpy(float))
        assert channel_names(tmp_path / name, columns) == ["x", "n"]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("a,b\n1,2\n3,x\n", {}, "line 3, column 'b': 'x' is not a finite number"),
        ("a,b\n1,inf\n", {}, "line 2, column 'b': 'inf' is not a finite number"),
        ("a,b\n1,2\n3\n", {}, "line 3: 1 cells under 2 column names"),
        ('a,b\n"1\n1",2\n3\n', {}, "line 3, column 'a'"),
        ("a,b\n1,2\n", {"names": ("c",)}, "data.columns: .*has no column 'c'; it has a, b"),
        ("a,b\n1,2\n", {"time": "t"}, "data.time: .*has no column 't'"),
        ("t,b\n2,1\n2,2\n", {"time": "t"}, "line 3, column 't': '2' is not after the step before"),
        ("t,b\n2020-01-01,1\nlater,2\n", {"time": "t"}, "line 3, column 't': 'later' is not a number, date or time"),
        ("s,b\n,1\n", {"series": "s"}, "line 2, column 's': names no series"),
        ("1,2\n3,4\n", {}, "line 1: 1, 2 are numbers; the first line has to name the columns"),
        ("a,a\n1,2\n", {}, "line 1: two columns are called 'a'"),
        ("", {}, "line 1: does not name"),
        ("t\n1\n", {"time": "t"}, "no column of values"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, text: str, columns: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        table(tmp_path / "bad.csv", text, **columns)
    assert "bad.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_time_column_is_checked_series_by_series(tmp_path: Path) -> None:
    text = "t,s,x\n1,a,1\n1,b,2\n2,a,3\n1.5,b,4\n"
    assert [len(one.values) for one in table(tmp_path / "f.csv", text, time="t", series="s")] == [2, 2]


def test_parquet_that_is_none_and_columns_of_text(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="no.parquet: not a readable Parquet file"):
        list(read_table(tmp_path / "no.parquet", "no", Columns()))
    pandas.DataFrame({"x": [1.0, 2.0], "y": ["a", "b"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="row 1, column 'y': 'a' is not a finite number"):
        list(read_table(tmp_path / "text.parquet", "text", Columns()))


@pytest.mark.parametrize(
    ("name", "steps", "missing", "first"), [("nile", 100, 0, 1120), ("sunspots", 309, 0, 5), ("co2", 2284, 59, 316.1)]
)
def test_the_series_that_statsmodels_ships(name: str, steps: int, missing: int, first: float) -> None:
    """Against its own loader."""
    import statsmodels.datasets

    decided = schemes.settings(f"builtin:{name}", "series")
    (column,), time = decided["columns"], decided["time"]
    ((_, path),) = schemes.files(f"builtin:{name}", "series", None)
    (one,) = read_table(path, name, Columns((column,), time))
    loaded = getattr(statsmodels.datasets, name).load_pandas().data
    expected = loaded[column].to_numpy(float)
    assert (len(one.values), int(np.isnan(one.values).sum()), one.values[0, 0]) == (steps, missing, first)
    np.testing.assert_array_equal(one.values[:, 0], expected)


def test_a_builtin_series_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match="builtin:stdlib holds no series; builtin:nile, .* do$"):
        schemes.files("builtin:stdlib", "series", None)


def test_piano_rolls(tmp_path: Path) -> None:
    path = tmp_path / "rolls.json"
    path.write_text(json.dumps({"train": [[[21, 108], []], [[60]]], "valid": [[[60, 64]]], "test": [[[22]]]}))
    found = list(read_rolls(path))
    assert [(one.name, one.split, one.values.shape) for one in found] == [
        ("train-0", "train", (2, 88)),
        ("train-1", "train", (1, 88)),
        ("valid-0", "validation", (1, 88)),
        ("test-0", "test", (1, 88)),
    ]
    assert np.flatnonzero(found[0].values[0]).tolist() == [0, 87]
    assert found[0].values[1].sum() == 0
    assert np.flatnonzero(found[2].values[0]).tolist() == [39, 43]
    for text, said in (
        ('{"train": [[[20]]]}', r"train\[0\]: step 0: 20 is not a MIDI note"),
        ('{"train": [[60]]}', r"train\[0\]: step 0: a step is a list"),
        ('{"other": []}', "piano rolls are one object"),
        ("[1", "not readable as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            list(read_rolls(path))


def test_jsb_chorales_as_published(datasets: Path) -> None:
    """229, 76 and 77 pieces; an independent Bernoulli per key gets 11.06 nats a step on the test part (total/total)."""
    found = list(read_rolls(datasets / "polymusic" / "JSB_Chorales.json"))
    parts = {split: [one.values for one in found if one.split == split] for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [229, 76, 77]
    train, test = np.concatenate(parts["train"]), np.concatenate(parts["test"])
    chance = (train.sum(0) + 0.5) / (len(train) + 1)
    nats = -(test * np.log(chance) + (1 - test) * np.log1p(-chance)).sum() / len(test)
    assert nats == pytest.approx(11.06, abs=0.03)


# Splits and standardisation ------------------------------------------------------------------------------------------


def ramp(name: str, steps: int, channels: int = 1) -> NumericSeries:
    return NumericSeries(name, np.arange(steps * channels, dtype=float).reshape(steps, channels))


def test_a_split_in_time_keeps_the_order_and_loses_nothing() -> None:
    parts = split_series([ramp("a", 10), ramp("b", 3)], "time", 0.2, 0.1)
    assert [one.values[:, 0].tolist() for one in parts["train"]] == [list(range(7)), [0.0, 1.0]]
    assert [one.values[:, 0].tolist() for one in parts["validation"]] == [[7.0, 8.0], [2.0]]
    assert [one.values[:, 0].tolist() for one in parts["test"]] == [[9.0]]


def test_a_split_by_series_keeps_them_whole_whatever_their_order() -> None:
    series = [ramp(f"s{number}", 4) for number in range(10)]
    parts = split_series(series, "series", 0.2, 0.1)
    assert [len(parts[split]) for split in SPLITS] == [7, 2, 1]
    again = split_series(series[::-1], "series", 0.2, 0.1)
    for split in SPLITS:
        assert {one.name for one in parts[split]} == {one.name for one in again[split]}


def test_statistics_are_of_the_observed_values_of_the_train_part_alone(tmp_path: Path) -> None:
    values = np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0], [100.0, np.nan]])
    content = dataset(tmp_path, [NumericSeries("a", values)])
    assert content["mean"] == [2.0, 5.0]
    assert content["deviation"] == [1.0, 1.0], "a channel that never moves is divided by 1"
    assert content["splits"] == {
        "train": {"series": 1, "steps": 3, "missing": 1},
        "validation": {"series": 1, "steps": 1, "missing": 1},
        "test": {"series": 0, "steps": 0, "missing": 0},
    }
    train, held_out = (Series(tmp_path, split, 8).batch(np.array([0])) for split in ("train", "validation"))
    np.testing.assert_array_equal(train["values"][0], [[-1, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(train["observed"][0], [[True, True], [False, True], [True, True]])
    np.testing.assert_array_equal(held_out["values"][0], [[98, 0]])
    np.testing.assert_array_equal(held_out["observed"][0], [[True, False]])


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation split empty"):
        dataset(tmp_path, [ramp("a", 1)])
    with pytest.raises(DataError, match="no value of 'c1' in the train split"):
        dataset(
            tmp_path,
            [NumericSeries("a", np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 4.0], [1.0, 2.0]]))],
            validation=0.5,
        )
    with pytest.raises(DataError, match="holds no series"):
        Series(tmp_path / "nowhere", "train", 4)


# Windows -------------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    sequence=st.integers(1, 12),
    stride=st.integers(1, 12),
)
def test_windows_cover_every_step_and_never_straddle(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sequence: int, stride: int
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    values = [1000.0 * number + np.arange(length) for number, length in enumerate(lengths)]
    series = [NumericSeries(f"s{n}", v[:, None], "train") for n, v in enumerate(values)]
    series.append(NumericSeries("v", np.arange(40.0)[:, None], "validation"))
    stride = min(stride, sequence)
    dataset(folder, series, standardise=False, stride=stride)
    train = Series(folder, "train", sequence)
    seen: list[float] = []
    for index in range(len(train)):
        batch = train.batch(np.array([index]))
        window = batch["values"][0, :, 0]
        assert batch["steps"].all()
        assert len(window) == train.lengths[index] == train.sizes[index] <= sequence
        assert (np.diff(window) == 1).all(), "a window straddles two series"
        seen += window.tolist()
    assert set(seen) == {float(value) for part in values for value in part}
    starts = {float(train.batch(np.array([index]))["values"][0, 0, 0]) for index in range(len(train))}
    assert all((start % 1000) % stride == 0 for start in starts)
    # In the other splits every step counts once.
    held_out = Series(folder, "validation", sequence)
    assert int(held_out.lengths.sum()) == 40


def test_a_batch_is_padded_to_its_longest_window(tmp_path: Path) -> None:
    dataset(
        tmp_path,
        [NumericSeries("a", np.ones((7, 2)), "train"), NumericSeries("b", np.ones((5, 2)), "validation")],
        standardise=False,
    )
    train = Series(tmp_path, "train", 4)
    batch = train.batch(np.array([1, 0]))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "values": ((2, 4, 2), np.dtype("float32")),
        "observed": ((2, 4, 2), np.dtype("bool")),
        "steps": ((2, 4), np.dtype("bool")),
    }
    assert batch["steps"].tolist() == [[True, True, True, False], [True] * 4]
    assert not batch["observed"][0, 3].any() and (batch["values"][0, 3] == 0).all()
    assert train.units(batch) == 7
    with pytest.raises(IndexError, match="2"):
        train.batch(np.array([2]))


def test_an_epoch_of_buckets_takes_every_step_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    series = [
        NumericSeries(f"s{n}", np.full((length, 1), float(n)), "train")
        for n, length in enumerate(random.integers(3, 40, 60))
    ]
    dataset(tmp_path, [*series, NumericSeries("v", np.zeros((30, 1)), "validation")], standardise=False)
    train = Series(tmp_path, "train", 16)
    buckets = Buckets(train, 128, 4, seed=1)
    taken = np.concatenate([np.concatenate(buckets.micro_batches(step)) for step in range(buckets.steps_per_lap)])
    assert sorted(taken) == sorted(np.repeat(np.arange(len(train)), len(taken) // len(train)))
    held_out = Series(tmp_path, "validation", 16)
    assert sum(held_out.units(held_out.batch(part)) for part in fixed(held_out, 100, 4)) == 30


def test_the_fingerprint_follows_content_and_windows_not_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        dataset(tmp_path / name, [ramp("s", 20)])
    (tmp_path / "c").mkdir()
    dataset(tmp_path / "c", [ramp("s", 21)])
    prints = [Series(tmp_path / n, "train", s).fingerprint for n, s in (("a", 4), ("b", 4), ("a", 5), ("c", 4))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_arrays_that_are_not_what_was_written_are_named(tmp_path: Path) -> None:
    dataset(tmp_path, [ramp("s", 20)])
    np.save(tmp_path / "train-values.npy", np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match="train-values.npy is not what was written"):
        Series(tmp_path, "train", 4)
    with (tmp_path / "validation-starts.npy").open("w") as file:
        csv.writer(file).writerow(["no"])
    with pytest.raises(DataError, match="validation split"):
        Series(tmp_path, "validation", 4)


# Generated -----------------------------------------------------------------------------------------------------------


def test_drawn_series_have_the_covariance_of_their_model() -> None:
    """AR(0.9) seen through noise: autocovariance 0.9^k / 0.19, plus 1 at lag 0; from the first step on."""
    model = LinearGaussianSeries(series=10_000, length=4)
    values = np.stack([one.values[:, 0] for one in model.draw()])
    lags = abs(np.arange(4)[:, None] - np.arange(4))
    np.testing.assert_allclose(np.cov(values.T), 0.9**lags / 0.19 + np.eye(4), atol=0.3)
    np.testing.assert_allclose(model.first_covariance(), [[1 / 0.19]])


def test_a_series_is_a_function_of_seed_and_number() -> None:
    A, C = ((0.5, 0.2), (0.0, 0.8)), ((1.0, 0.0), (0.3, 1.0), (0.0, 2.0))
    keys = {"A": A, "B": ((1.0,), (0.5,)), "C": C, "D": ((0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.1))}
    few = list(LinearGaussianSeries(**keys, series=3, length=6).draw())  # type: ignore[arg-type]
    many = list(LinearGaussianSeries(**keys, series=9, length=6).draw())  # type: ignore[arg-type]
    other = list(LinearGaussianSeries(**keys, series=3, length=6, seed=1).draw())  # type: ignore[arg-type]
    for one, same, different in zip(few, many, other, strict=False):
        np.testing.assert_array_equal(one.values, same.values)
        assert not np.array_equal(one.values, different.values)
        assert one.values.shape == (6, 3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"A": ((1.0,),)}, "data.generated.A: its largest eigenvalue is 1"),
        ({"A": ((0.5, 0.1),)}, "data.generated.A: 1 x 2; .*1 x 1"),
        ({"C": ((1.0, 2.0),)}, "data.generated.C"),
        ({"D": ((0.0,),)}, "data.generated.D: without noise"),
        ({"B": ()}, "data.generated.B: not a matrix"),
        ({"series": 1}, "series must be at least 2"),
    ],
)
def test_a_model_that_is_none_is_named(keys: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        LinearGaussianSeries(**keys)  # type: ignore[arg-type]
