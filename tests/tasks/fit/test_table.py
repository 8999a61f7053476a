"""Tables in every format and dialect: what was written comes back."""

import bz2
import gzip
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from reducible.tasks.errors import UserError
from reducible.tasks.fit.admission import admit
from reducible.tasks.fit.run_table import read_runs
from reducible.tasks.fit.table import read_table

Rows = list[dict[str, float]]


def random_rows(seed: int) -> Rows:
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randrange(2, 8)):
        N, D = float(rng.randrange(10**5, 10**10)), float(rng.randrange(10**7, 10**12))
        rows.append({"N": N, "D": D, "C": 6 * N * D, "loss": rng.uniform(1.5, 12)})
    return rows


def same(path: Path, rows: Rows) -> None:
    table = read_runs(str(path)).table
    assert table[["N", "D", "C", "loss"]].to_dict("records") == rows


def as_text(value: float, mark: str, group: str) -> str:
    text = repr(value)
    if group and "e" not in text:
        text = f"{value:,.0f}" if value > 100 else text
        return text.translate(str.maketrans({",": group, ".": mark}))
    return text.replace(".", mark)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_of_every_dialect(tmp_path: Path, separator: str, encoding: str) -> None:
    numbers = [(".", ""), (",", ""), (".", ","), (",", "."), (".", "'"), (",", "\u202f")]
    for seed, ((mark, group), quoted, end) in enumerate(itertools.product(numbers, [False, True], ["\n", "\r\n"])):
        rows = random_rows(seed)
        cells = [list(rows[0])] + [[as_text(value, mark, group) for value in row.values()] for row in rows]
        protect = quoted or separator in (mark, group)
        lines = [separator.join(f'"{cell}"' if protect else cell for cell in line) for line in cells]
        path = tmp_path / f"{seed}.csv"
        path.write_bytes((end.join(lines) + end).encode(encoding))
        same(path, rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_other_formats(tmp_path: Path, seed: int) -> None:
    rows = random_rows(seed)
    frame = pandas.DataFrame(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    parquet, texts = io.BytesIO(), io.BytesIO()
    frame.to_parquet(parquet)
    frame.map(lambda value: repr(float(value))).to_parquet(texts)
    written = {
        "runs.jsonl": lines.encode(),
        "list.json": json.dumps(rows, indent=1).encode(),
        "blank.txt": frame.to_string(index=False, float_format=lambda value: repr(float(value))).encode(),
        "runs.parquet": parquet.getvalue(),
        "texts.parquet": texts.getvalue(),
        "runs.csv.gz": gzip.compress(frame.to_csv(index=False).encode()),
        "runs.jsonl.bz2": bz2.compress(lines.encode()),
        "index.csv": frame.to_csv().encode(),
        "excel.csv": ("sep=;\n" + frame.to_csv(index=False, sep=";", decimal=",")).encode(),
        "commented.csv": ("# of last week, by hand\n" + frame.to_csv(index=False)).encode(),
        "name-that-says-nothing": frame.to_csv(index=False, sep="\t").encode(),
    }
    for name, content in written.items():
        path = tmp_path / name
        path.write_bytes(content)
        same(path, rows)


def test_objects_within_become_columns_and_cells_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"config": {"lr": 0.1, "opt": {"name": "adam"}}, "N": 1}\n\n{"N": "2", "loss": null}\n')
    assert read_table(str(path)).columns == {
        "config.lr": [0.1, None],
        "config.opt.name": ["adam", None],
        "N": [1, "2"],
        "loss": [None, None],
    }


def test_a_row_of_empty_cells_is_a_row_and_a_blank_line_is_none(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n1e6,2e7,3\n,,\n\n2e6,2e7,3\n")
    assert read_table(str(path)).rows == 3
    left_out = [(run.name, run.reason) for run in admit(read_runs(str(path)).table) if not run.used]
    assert left_out == [("run 2", "N is nan: it must be a positive number")]


def mlflow_runs(uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for name in ("ladder", "other"):
        experiment = client.create_experiment(name)
        for i in (1, 2):
            run = client.create_run(experiment, run_name=f"cell {i}", tags={"arch": "lstm"}).info.run_id
            client.log_param(run, "n_params", f"{i}.5M")
            client.log_param(run, "tokens", 20_000_000 * i)
            client.log_param(run, "seed", 3)
            client.log_metric(run, "train/loss", 9.0)
            client.log_metric(run, "val/loss", 8.0, step=1)
            client.log_metric(run, "val/loss", 3.25 / i, step=2)
            client.set_terminated(run, "FINISHED" if i == 1 else "KILLED")


def told_of(location: str, experiment: str | None = None) -> None:
    from reducible.tasks.fit.run_table import TableOptions

    runs = read_runs(location, TableOptions(experiment=experiment))
    assert runs.table.to_dict("list") == {
        "name": ["cell 1", "cell 2"],
        "N": [1.5e6, 2.5e6],
        "D": [2e7, 4e7],
        "C": [6 * 1.5e6 * 2e7, 6 * 2.5e6 * 4e7],
        "loss": [3.25, 1.625],
        "seed": [3.0, 3.0],
        "status": ["finished", "KILLED"],
    }
    assert "not used: metrics.train/loss, tags.arch" in runs.remarks


def test_runs_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    database = tmp_path / "mlflow.db"
    mlflow_runs(f"sqlite:///{database}")
    with pytest.raises(UserError, match=r"several experiments have runs; add --experiment with one of"):
        read_runs(str(tmp_path))
    for location in (f"sqlite:///{database}", str(database), str(tmp_path)):
        told_of(location, "ladder")
    with pytest.raises(UserError, match="--experiment lader: .* has no experiment of that name; it has"):
        told_of(str(database), "lader")


def test_a_folder_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow_runs((tmp_path / "mlruns").as_uri())
    told_of(str(tmp_path / "mlruns"), "ladder")
    told_of((tmp_path / "mlruns").as_uri(), "ladder")
    folder = next(path.parent for path in (tmp_path / "mlruns").glob("*/meta.yaml") if "ladder" in path.read_text())
    told_of(str(folder))  # the folder of the experiment itself


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: None, "does not exist: give a table of runs with the columns N, D, C, loss"),
        (lambda path: path.mkdir(), "is a folder and holds no runs of MLflow"),
        (lambda path: path.write_bytes(b""), "cannot be read as CSV"),
        (lambda path: path.write_bytes(b"PK\x03\x04..."), "is a spreadsheet or an archive: save the sheet as CSV"),
        (lambda path: path.write_bytes(b"PAR1..."), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b"\x1f\x8b..."), "cannot be unpacked"),
        (lambda path: path.write_text('{"N": 1}\n{"N": '), "cannot be read as JSON lines"),
        (lambda path: path.write_text("[1, 2]"), "every line must be an object"),
        (lambda path: path.write_text("N,D\n1,2,3\n"), "rows have more cells than the header"),
        (lambda path: path.write_text("N,D\n1,2\n1,2,3\n"), "cannot be read as CSV"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, make: Callable[[Path], object], line: str) -> None:
    path = tmp_path / "runs"
    make(path)
    with pytest.raises(UserError) as raised:
        read_table(str(path))
    assert line in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_uris_are_checked_before_mlflow_makes_what_is_not_there(tmp_path: Path) -> None:
    import sqlite3

    for location in (f"sqlite:///{tmp_path}/none.db", (tmp_path / "none").as_uri()):
        with pytest.raises(UserError, match="there is no file"):
            read_table(location)
    with pytest.raises(UserError, match="s3://bucket/runs.csv: s3:// is not a known scheme"):
        read_table("s3://bucket/runs.csv")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(UserError, match="the database is not one of MLflow"):
        read_table(str(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db"]


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("N,D,loss,loss\n1e6,2e7,3,4\n", "two columns are called loss and differ"),
        ("N,N ,D,loss\n1e6,2e6,2e7,3\n", "two columns are called N and differ"),
        ('{"N": 1, "D": 2, "loss": 3, "loss": 4}\n', "the key loss stands twice in one object"),
    ],
)
def test_a_name_that_stands_twice_is_refused(tmp_path: Path, text: str, twice: str) -> None:
    (tmp_path / "runs").write_text(text)
    with pytest.raises(UserError, match=twice):
        read_table(str(tmp_path / "runs"))


def test_equal_columns_of_one_name_are_one(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(",N,D,loss,loss,\na,1e6,2e7,3,3,b\n")
    table = read_table(str(tmp_path / "runs.csv"))
    assert table.columns == {"": ["a"], "N": ["1e6"], "D": ["2e7"], "loss": ["3"]}


def test_true_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"N": 1e6, "D": 2e7, "loss": true}\n')
    with pytest.raises(UserError, match="column loss: 'True' is not a number"):
        read_runs(str(tmp_path / "runs.jsonl"))
