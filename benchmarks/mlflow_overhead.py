"""What MLflow costs: a training for each row it records, and the driver for catching up.

    python benchmarks/mlflow_overhead.py [--rows 2000]

The training process only appends a line to a file: microseconds, and no import of MLflow. The driver's thread then
writes them to a fresh SQLite database (values and rows a second, the import and the making of the tables apart), and a
store that is already there is recognised without importing MLflow. Best of three where it can be repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from reducible.tasks.mlflow.recorder import Recorder, catch_up, quiet  # noqa: E402
from reducible.tasks.workflow.record import Record, copy_record, read_rows  # noqa: E402

METRICS = 9  # what a training logs: loss, tokens, FLOPs, learning rate, norm, three of speed, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        print(f"a row of {METRICS} metrics costs the training   {row_microseconds(root, rows):8.1f} microseconds")
        print(f"MLflow imported by a process that records:  {'yes' if imports_mlflow() else 'no':>8}")
        import_seconds, table_seconds = first_time(root)
        print(f"import of MLflow in the driver's thread     {import_seconds:8.2f} s, once for each command")
        print(f"making the database                         {table_seconds:8.2f} s, once for each root")
        for index in range(30):
            commit(root, f"run-{index}", rows if index == 0 else 100)
        sent, seconds = sending(root)
        print(
            f"sending 30 runs, {sent} rows                 {seconds:8.2f} s: {METRICS * sent / seconds:,.0f} values/s"
        )
        kept, seconds = sending_one(root, rows)
        print(f"one training of {rows} rows, {kept} of them kept  {seconds:8.2f} s")
        print(f"30 runs that are there already              {1000 * already_there(root):8.1f} ms")


def row_microseconds(root: Path, rows: int) -> float:
    best = float("inf")
    for attempt in range(3):
        record = Record(root / "scratch", str(attempt))
        started = time.perf_counter()
        for step in range(rows):
            record.row(step, {f"train/metric_{index}": 1.5 for index in range(METRICS)})
        best = min(best, (time.perf_counter() - started) / rows)
    return best * 1e6


def imports_mlflow() -> bool:
    program = "import sys, reducible.tasks.workflow.record; sys.exit('mlflow' in sys.modules)"
    return subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode != 0


def first_time(root: Path) -> tuple[float, float]:
    quiet()
    started = time.perf_counter()
    from mlflow import MlflowClient

    imported = time.perf_counter()
    MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
    return imported - started, time.perf_counter() - imported


def commit(root: Path, name: str, rows: int) -> None:
    live = root / "live" / name
    record = Record(live, "a")
    record.describe("train", name, {"model": {"width": 32}})
    for step in range(0, 10 * rows, 10):
        record.row(step, {f"train/metric_{index}": 1.5 + step for index in range(METRICS)})
    artifact = root / "artifacts" / "train" / name
    copy_record(live, artifact / "record")
    manifest = {
        "identity": name,
        "label": name,
        "attempt": "a",
        "created": time.time(),
        "seconds": 1.0,
        "code": "0" * 40,
    }
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def sending(root: Path) -> tuple[int, float]:
    started = time.perf_counter()
    assert catch_up(root, f"sqlite:///{root}/mlflow.db")
    return kept_rows(root, [f"run-{index}" for index in range(30)]), time.perf_counter() - started


def sending_one(root: Path, rows: int) -> tuple[int, float]:
    commit(root, "alone", rows)
    started = time.perf_counter()
    assert catch_up(root, f"sqlite:///{root}/mlflow.db")
    seconds = time.perf_counter() - started
    assert len(read_rows(root / "artifacts" / "train" / "alone" / "record")) == rows
    return kept_rows(root, ["alone"]), seconds


def kept_rows(root: Path, names: list[str]) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("reducible")
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    return sum(len(client.get_metric_history(runs[name], "train/metric_0")) for name in names)


def already_there(root: Path) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        recorder = Recorder(root, f"sqlite:///{root}/mlflow.db")
        recorder.catch_up()
        assert recorder.close()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
