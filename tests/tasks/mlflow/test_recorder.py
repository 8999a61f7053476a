"""MLflow shows what happened, once, whatever was killed, repeated or away in the meantime."""

import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import commit, commit_cell, identity, make_sweep, train_record, work_record

from reducible.tasks.mlflow.recorder import Recorder, catch_up, default_tracking_uri, last_tracking_uri
from reducible.tasks.workflow.record import Record, read_rows


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables take seconds to make: made once, copied for each test."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    yield tmp_path


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path) -> dict[str, Any]:
    """Active runs by name; a name twice is a failure by itself."""
    found = client(root).search_runs([client(root).get_experiment_by_name("reducible").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "two runs of one name"
    return {run.info.run_name: run for run in found}


def history(root: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(root).get_metric_history(run.info.run_id, metric)]


def recorded(root: Path, metric: str, folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["metrics"][metric]) for row in read_rows(folder) if metric in row["metrics"]]


def quick(root: Path, **options: Any) -> Recorder:
    return Recorder(root, poll_seconds=0.05, **options)


def wait_for(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_a_sweep_lies_flat_with_one_run_that_speaks_for_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # leaks from a notebook; must disturb nothing
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    made = make_sweep(root, budgets=(3e11, 1e12), widths=(40, 64))
    recorder = quick(root)
    for artifact in made.values():
        recorder.follow(artifact.name, artifact.parent.name)
    assert recorder.close(120)
    found = runs(root)
    assert set(found) == set(made)
    assert not any("mlflow.parentRunId" in run.data.tags for run in found.values())
    cell = found["train 1e12 w40"]
    result = json.loads((made["train 1e12 w40"] / "result.json").read_text())
    assert cell.info.status == "FINISHED"
    assert cell.data.tags["reducible.artifact"] == made["train 1e12 w40"].name
    assert cell.data.tags["kind"] == "train" and cell.data.tags["sweep"] == "demo"
    assert cell.data.tags["git_commit"] == "1f" * 20 + "+changes"
    assert cell.data.tags["mlflow.source.git.commit"] == "1f" * 20
    assert cell.data.params["model.width"] == "40" and cell.data.params["optimizer.learning_rate"] == "0.003"
    assert cell.data.metrics["flops"] == result["flops"]
    assert cell.data.metrics["log10_flops"] == pytest.approx(math.log10(result["flops"]))
    assert cell.data.metrics["log10_loss"] == pytest.approx(math.log10(result["validation_loss"]))
    assert history(root, cell, "val/loss") == recorded(root, "val/loss", made["train 1e12 w40"] / "record")
    assert history(root, cell, "system/mfu")
    inputs = {d.dataset.name: d for d in cell.inputs.dataset_inputs}
    assert set(inputs) == {"stdlib", "stdlib (validation)"}
    assert json.loads(inputs["stdlib"].dataset.profile) == {"tokens": 4_100_000}
    # Created when it began and ended when it ended, not when it was sent.
    manifest = json.loads((made["train 1e12 w40"] / "manifest.json").read_text())
    assert cell.info.end_time == int(1000 * manifest["created"])
    assert cell.info.end_time - cell.info.start_time == 40_000

    diverged = found["train 3e11 w64"]
    assert diverged.info.status == "FAILED" and diverged.data.tags["status"] == "diverged"
    assert math.isnan(diverged.data.metrics["validation_loss"]) and "log10_loss" not in diverged.data.metrics

    summary = found["sweep demo"]
    files = {file.path for file in client(root).list_artifacts(summary.info.run_id)}
    assert "report.html" in files
    note = summary.data.tags["mlflow.note.content"]
    assert "L(C) = 1.21" in note and f"/runs/{summary.info.run_id}/artifacts/report.html" in note
    assert "viewStateShareKey=sweep-demo-" in note


def test_a_finished_store_is_recognised_without_importing_mlflow(root: Path) -> None:
    artifact = commit_cell(root, "train once", 3e11, 16, time.time())
    assert catch_up(root)
    before = runs(root)["train once"]
    program = (
        "import sys; from pathlib import Path; from reducible.tasks.mlflow.recorder import Recorder, catch_up;"
        f"root = Path({str(root)!r}); assert catch_up(root);"
        "recorder = Recorder(root);"
        f"recorder.follow({artifact.name!r}, 'train'); assert recorder.close();"
        "sys.exit('mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
    # A sweep that takes over the finished cell only adds its tags.
    recorder = quick(root)
    recorder.follow(artifact.name, "train", tags={"sweep": "larger"})
    assert recorder.close(60)
    after = runs(root)["train once"]
    assert after.info.run_id == before.info.run_id and after.data.tags["sweep.larger"] == "yes"
    assert after.data.metrics == before.data.metrics


def test_a_killed_and_resumed_training_goes_on_in_its_run_without_doubled_metrics(root: Path) -> None:
    folder = work_record(root, "train", "cell")
    train_record(folder, "cell", "1-a", 0, 120)
    first = quick(root)
    first.follow(identity("cell"), "train", tags={"sweep": "demo"})
    wait_for(lambda: (root / "mlflow" / "runs").is_dir())
    assert first.close(60)  # its driver was stopped
    killed = runs(root)["cell"]
    assert killed.info.status == "KILLED" and len(history(root, killed, "train/loss")) == 13

    second = quick(root)
    second.follow(identity("cell"), "train", tags={"sweep": "demo"})
    wait_for(lambda: runs(root)["cell"].info.status == "RUNNING")
    # Resumed from step 100: the same values again, at other times, then new ones; the last line is torn.
    resumed = train_record(folder, "cell", "2-b", 100, 200)
    with resumed.metrics_file.open("a") as file:
        file.write('{"step": 210, "time": 1, "metr')
    wait_for(lambda: len(history(root, runs(root)["cell"], "train/loss")) == 21)
    commit(root, "train", "cell", folder, "cell")
    shutil.rmtree(folder)
    second.end(identity("cell"), "finished")
    assert second.close(60)
    run = runs(root)["cell"]
    assert run.info.run_id == killed.info.run_id and run.info.status == "FINISHED"
    everything = recorded(root, "train/loss", root / "artifacts" / "train" / identity("cell") / "record")
    assert history(root, run, "train/loss") == everything
    assert [step for step, _ in everything] == list(range(0, 201, 10))


def test_a_task_made_afresh_gets_a_fresh_run(root: Path) -> None:
    old = commit_cell(root, "cell", 3e11, 16, time.time(), attempt="first")
    assert catch_up(root)
    before = runs(root)["cell"].info.run_id
    shutil.rmtree(old)
    shutil.rmtree(work_record(root, "train", "cell"))
    recorder = quick(root)
    recorder.follow(identity("cell"), "train")
    commit_cell(root, "cell", 3e11, 24, time.time(), attempt="second")
    recorder.end(identity("cell"), "finished")
    assert recorder.close(60)
    after = runs(root)["cell"]
    assert after.info.run_id != before and after.data.params["model.width"] == "24"


def test_two_drivers_at_once_write_one_run_and_no_value_twice(root: Path) -> None:
    artifact = commit_cell(root, "cell", 3e11, 16, time.time())
    drivers = [Recorder(root, poll_seconds=0.01) for _ in range(2)]
    for driver in drivers:
        driver.follow(artifact.name, "train", tags={"sweep": "demo"})
    assert all([driver.close(60) for driver in drivers])
    run = runs(root)["cell"]
    steps = [step for step, _ in history(root, run, "train/loss")]
    assert steps and len(steps) == len(set(steps))
    assert run.info.status == "FINISHED"


def test_a_driver_that_died_leaves_a_run_that_the_next_command_marks_killed(root: Path) -> None:
    folder = work_record(root, "train", "cell")
    train_record(folder, "cell", "1-a", 0, 50)
    program = (
        "import os, time; from pathlib import Path; from reducible.tasks.mlflow.recorder import Recorder\n"
        f"recorder = Recorder(Path({str(root)!r}), poll_seconds=0.01)\n"
        f"recorder.follow({identity('cell')!r}, 'train')\n"
        "while recorder._all()[0].run is None: time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], timeout=100)
    assert runs(root)["cell"].info.status == "RUNNING"
    assert catch_up(root)
    assert runs(root)["cell"].info.status == "KILLED"
    assert len(history(root, runs(root)["cell"], "train/loss")) == 6


def test_a_server_that_is_away_stops_nothing_and_is_caught_up_when_it_is_back(root: Path) -> None:
    artifact = commit_cell(root, "cell", 3e11, 16, time.time())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    said: list[str] = []
    recorder = quick(root, tracking_uri=address, say=said.append)
    started = time.monotonic()
    recorder.follow(artifact.name, "train", tags={"sweep": "demo"})
    assert time.monotonic() - started < 1, "following must not wait for the server"
    wait_for(lambda: said)
    assert recorder.close(30) is False
    assert len(said) == 2 and all("\n" not in line for line in said), said
    assert address in said[0] and "tried again" in said[0] and "`reducible ui`" in said[1]
    # The next command finds what is missing; here the runs go elsewhere, which is the same to it.
    assert catch_up(root, f"sqlite:///{root}/mlflow.db")
    assert runs(root)["cell"].data.tags["sweep"] == "demo"


def test_a_database_that_was_deleted_is_made_again_from_the_store(root: Path) -> None:
    artifact = commit_cell(root, "cell", 3e11, 16, time.time())
    assert catch_up(root)
    told = Recorder(root).ledger.read(artifact.name)
    assert told is not None and told.recorded
    (root / "mlflow.db").unlink()
    # Not written here: this process still has the deleted file open.
    forgotten = Recorder(root).ledger.read(artifact.name)
    assert forgotten is not None and not forgotten.recorded


def test_what_mlflow_would_refuse_is_made_to_fit(root: Path) -> None:
    record = Record(work_record(root, "train", "wide"), "a")
    parameters = {f"field.{index}": index for index in range(250)}
    record.describe("train", "wide", {**parameters, "long": "x" * 9000, "odd key(!)": [1, 2], "a//b": None})
    record.row(0, {"val/loss": math.nan, "train/loss": math.inf, "odd(key)": 1.0})
    for step in range(1, 30):
        record.row(step, {f"train/m{index}": float(index) for index in range(90)})
    record.row(30, {f"train/w{index}": 1.0 for index in range(2300)})
    record.note("# title\n\n" + "word " * 4000)
    commit(root, "train", "wide", record.folder, "wide")
    assert catch_up(root)
    run = runs(root)["wide"]
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 253 and len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("…") and run.data.params["odd key___"] == "[1, 2]"
    assert run.data.params["a/b"] == "null"
    assert math.isnan(run.data.metrics["val/loss"]) and run.data.metrics["train/loss"] > 1e300
    assert len(history(root, run, "train/m7")) == 29 and "train/w2299" in run.data.metrics
    assert len(run.data.tags["mlflow.note.content"]) == 8000
    assert run.data.tags["mlflow.note.content"].startswith("word")


def test_a_long_run_is_thinned_evenly_and_keeps_every_validation(root: Path) -> None:
    record = Record(work_record(root, "train", "long"), "a")
    record.describe("train", "long", {})
    for step in range(0, 20_001, 10):
        record.row(step, {"train/loss": 1 / (step + 1)} | ({"val/loss": 2.0} if step % 500 == 0 else {}))
    commit(root, "train", "long", record.folder, "long")
    assert catch_up(root)
    run = runs(root)["long"]
    steps = [step for step, _ in history(root, run, "train/loss")]
    assert steps[:100] == list(range(0, 1000, 10)), "nothing is left out early"
    assert steps[-1] == 20_000 and len(steps) < 500
    assert all(later <= 1.012 * earlier + 10 for earlier, later in zip(steps, steps[1:], strict=False))
    assert [step for step, _ in history(root, run, "val/loss")] == list(range(0, 20_001, 500))


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    from reducible.tasks.mlflow.runs import RunWriter

    bad = commit_cell(root, "bad", 3e11, 16, time.time())
    commit_cell(root, "good", 3e11, 24, time.time())
    parameters = RunWriter.parameters

    def refusing(self: RunWriter, given: Any) -> None:
        if given["model.width"] == 16:
            raise MlflowException("not this one")
        parameters(self, given)

    monkeypatch.setattr(RunWriter, "parameters", refusing)
    said: list[str] = []
    recorder = quick(root, say=said.append)
    recorder.catch_up()
    assert recorder.close(60) is False
    assert runs(root)["good"].info.status == "FINISHED"
    assert "not this one" in said[0]
    monkeypatch.undo()
    recorder = quick(root)
    recorder.follow(bad.name, "train")
    assert recorder.close(60) and runs(root)["bad"].info.status == "FINISHED"


def test_a_changed_setting_of_a_resumed_run_is_kept_beside_the_first(root: Path) -> None:
    folder = work_record(root, "train", "cell")
    Record(folder, "1").describe("train", "cell", {"execution": {"workers": 1}})
    first = quick(root)
    first.follow(identity("cell"), "train")
    assert first.close(60)
    Record(folder, "2").describe("train", "cell", {"execution": {"workers": 4}})
    second = quick(root)
    second.follow(identity("cell"), "train")
    assert second.close(60)
    run = runs(root)["cell"]
    assert run.data.params["execution.workers"] == "1" and run.data.tags["resumed.execution.workers"] == "4"


def test_the_newest_summary_speaks_for_a_sweep_that_has_grown(root: Path) -> None:
    for index, name in enumerate(["small", "grown"]):
        record = Record(work_record(root, "report", name), "a")
        record.describe("sweep", f"sweep {name}", {}, tags={"sweep": "demo"})
        commit(root, "report", name, record.folder, name, created=time.time() - 100 + index * 50)
    assert catch_up(root)
    found = runs(root)
    assert found["sweep small"].data.tags["superseded"] == found["sweep grown"].info.run_id
    assert "superseded" not in found["sweep grown"].data.tags


def test_the_fits_of_a_sweep_s_families_stand_side_by_side(root: Path) -> None:
    for index, (name, family) in enumerate([("old", "lstm"), ("gru", "gru"), ("new", "lstm")]):
        record = Record(work_record(root, "fit", name), "a")
        record.describe("fit", f"fit {name}", {}, {"sweep": "demo", "family": family})
        commit(root, "fit", name, record.folder, name, created=time.time() - 100 + index * 20)
    assert catch_up(root)
    found = runs(root)
    assert found["fit old"].data.tags["superseded"] == found["fit new"].info.run_id
    assert not {"superseded"} & {*found["fit gru"].data.tags, *found["fit new"].data.tags}


def test_tasks_without_a_record_get_no_run_and_no_thread_waits_for_them(root: Path) -> None:
    recorder = quick(root)
    for index in range(50):
        recorder.follow(identity(f"shard {index}"), "tokenise-shard")
    assert recorder.close(10)
    assert not (root / "mlflow" / "runs").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "mlflow-recorder"]


def test_the_tracking_server_is_named_by_an_absolute_path_unless_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert default_tracking_uri(Path("state")) == f"sqlite:///{root}/state/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert default_tracking_uri(Path("state")) == "http://127.0.0.1:9"
    (root / "mlflow").mkdir()
    (root / "mlflow" / "tracking_uri").write_text("http://127.0.0.1:7\n")
    assert last_tracking_uri(root) == "http://127.0.0.1:7"
