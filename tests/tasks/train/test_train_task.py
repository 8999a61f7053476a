"""The train task: its artifact, torchrun without Ray, and several workers under Ray Train, one of them killed."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from task_context import context_of
from training_cases import environment, small_spec

from reducible.data.shards import write_shard
from reducible.data.sources import Document
from reducible.data.tokenizer import byte_tokenizer
from reducible.models.weights.model_folder import load_model
from reducible.tasks.errors import UserError
from reducible.tasks.train import checkpoints
from reducible.tasks.train import train_task as task
from reducible.tasks.train.folders import CHECKPOINTS, MODEL, STATE
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Context


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset artifact of a few small documents."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = byte_tokenizer()
    texts = [f"def number_{i}():\n    return {i * i}\n" * 20 for i in range(40)]
    written = write_shard(
        [Document(str(i), t) for i, t in enumerate(texts)], tokenizer, folder / "shard", validation=0.2
    )
    tokenizer.save(folder / "tokenizer")
    content = {
        "name": "numbers",
        "source": "made here",
        "kind": "text",
        "fingerprint": "0" * 64,
        "splits": written["splits"],
        "shards": ["shard"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def spec_of(**changes: Any) -> TrainSpec:
    model = {"vocabulary": 257, "width": 16, "depth": 1, "heads": 2}
    return small_spec(**{"model": model, "sequence": 32, "batch": 5 * 32, "stop_step": 20} | changes)


def context(folder: Path, data: Path, spec: TrainSpec, execution: Execution, **inputs: Path) -> Context:
    return context_of("train numbers", spec, {"data": data} | inputs, folder, execution)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a training with one worker."""
    folder = tmp_path_factory.mktemp("alone")
    task.run(context(folder, data, spec_of(), Execution(log_every=5, checkpoint_every=8)))
    return folder / "staging"


def test_the_artifact_holds_model_state_record_and_result(alone: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    assert result["status"] == "finished" and result["step"] == 20 and result["reason"] is None
    model = load_model(alone / MODEL)
    assert sum(parameter.numel() for parameter in model.parameters()) == result["parameters"]
    checkpoints.verify(alone / STATE)
    description = json.loads((alone / "record" / "describe.json").read_text())
    assert description["kind"] == "train" and description["name"] == "train numbers"
    assert description["parameters"]["optimizer.learning_rate"] == 0.01
    assert {dataset["split"] for dataset in description["datasets"]} == {"train", "validation"}
    rows = read_rows(alone / "record")
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert all({"train/units", "train/flops"} <= row["metrics"].keys() for row in rows)
    assert rows[-1]["metrics"]["val/loss"] == result["validation_loss"]
    assert "finished" in (alone / "record" / "note.md").read_text()


def test_bits_per_byte_of_bytes_are_the_loss_in_bits(alone: Path) -> None:
    """One token is one byte, but for the separators, which are targets and no text."""
    result = json.loads((alone / "result.json").read_text())
    bits = result["validation_loss"] / torch.log(torch.tensor(2.0)).item()
    assert bits < result["validation_bits_per_byte"] < bits * 1.02


def test_a_later_stretch_starts_from_the_artifact(data: Path, alone: Path, tmp_path: Path) -> None:
    spec = spec_of(start_step=20, stop_step=24, schedule={"kind": "wsd", "warmup_steps": 2, "cooldown_steps": 4})
    task.run(context(tmp_path, data, spec, Execution(), start=alone))
    result = json.loads((tmp_path / "staging" / "result.json").read_text())
    before = json.loads((alone / "result.json").read_text())
    assert result["step"] == 24 and result["units"] == before["units"] + 4 * 5 * 32
    assert [row["step"] for row in read_rows(tmp_path / "staging" / "record")] == [24]


def test_the_learning_rate_of_a_search_is_used_and_shown(data: Path, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "result.json").write_text('{"learning_rate": 0.0123}')
    spec = spec_of(optimizer={"learning_rate": None}, stop_step=4)
    task.run(context(tmp_path, data, spec, Execution(), search=tmp_path / "search"))
    assert json.loads((tmp_path / "staging" / "result.json").read_text())["learning_rate"] == 0.0123
    described = json.loads((tmp_path / "staging" / "record" / "describe.json").read_text())
    assert described["parameters"]["optimizer.learning_rate"] == 0.0123


def test_a_diverged_training_is_a_result_without_a_model(data: Path, tmp_path: Path) -> None:
    spec = spec_of(optimizer={"learning_rate": 3.0, "clip": None}, schedule={"kind": "constant"})
    task.run(context(tmp_path, data, spec, Execution()))
    result = json.loads((tmp_path / "staging" / "result.json").read_text())
    assert result["status"] == "diverged" and "\n" not in result["reason"]
    assert not (tmp_path / "staging" / MODEL).exists()


@pytest.mark.slow
def test_torchrun_trains_the_same_without_ray(data: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(spec_of().model_dump_json())
    (tmp_path / "execution.json").write_text(Execution(workers=2, strategy="fsdp", log_every=5).model_dump_json())
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "reducible.tasks.train",
        ),
        *(str(tmp_path / "spec.json"), "--execution", str(tmp_path / "execution.json")),
        *("--data", str(data), "--work", str(tmp_path / "work")),
    ]
    done = subprocess.run(command, env=environment(TMPDIR=str(tmp_path)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["validation_loss"] == pytest.approx(
        json.loads((alone / "result.json").read_text())["validation_loss"], rel=1e-4
    )
    expected, weights = (load_file(f / MODEL / "model.safetensors") for f in (alone, tmp_path / "work"))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.fixture
def settings_of_ray_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task sets them in its own process, which is a worker's elsewhere."""
    for name in ("HEALTH_CHECK_INTERVAL_S", "COLLECTIVE_TIMEOUT_S", "ENABLE_PRINT_PATCH"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}", "")  # or there is nothing to restore
        monkeypatch.delenv(f"RAY_TRAIN_{name}")


@pytest.mark.slow
@pytest.mark.usefixtures("settings_of_ray_train")
def test_several_workers_train_under_ray_and_outlive_one_of_them(data: Path, alone: Path, tmp_path: Path) -> None:
    """SIGKILL of one worker in the middle: Ray Train begins again, and our newest checkpoint is found."""
    from reducible.pipelines.cluster.ray_session import session

    # A small rate: at a large one, rounding grows to percents within hundreds of steps, for any two world sizes.
    spec, killed = spec_of(stop_step=600, optimizer={"learning_rate": 0.001}), []
    execution = Execution(workers=2, strategy="ddp", checkpoint_every=50, log_every=5)

    def kill_one() -> None:
        folder = tmp_path / "work" / CHECKPOINTS
        while not killed:
            time.sleep(0.01)
            if len(checkpoints.complete(folder)) >= 2:
                # The processes that write the record are the ranks; the newest file is that of rank 0.
                pid = int(max((tmp_path / "work" / "record").glob("metrics-*.jsonl")).stem.rsplit("-", 1)[1])
                psutil.Process(pid).kill()
                killed.append(pid)

    threading.Thread(target=kill_one, daemon=True).start()
    with session(cpus=2):
        task.run(context(tmp_path, data, spec, execution))
    assert killed
    assert len(list((tmp_path / "work" / "record").glob("metrics-*.jsonl"))) == 2
    result = json.loads((tmp_path / "staging" / "result.json").read_text())
    assert result["status"] == "finished" and result["step"] == 600
    rows = read_rows(tmp_path / "staging" / "record")
    assert [row["step"] for row in rows if "train/loss" in row["metrics"]] == list(range(5, 601, 5))

    task.run(context(tmp_path / "alone", data, spec, Execution(log_every=5)))
    same = {row["step"]: row["metrics"] for row in read_rows(tmp_path / "alone" / "staging" / "record")}
    for row in rows:
        if "train/loss" in row["metrics"]:
            assert row["metrics"]["train/units"] == same[row["step"]]["train/units"]
            assert row["metrics"]["train/loss"] == pytest.approx(same[row["step"]]["train/loss"], rel=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("settings_of_ray_train")
def test_a_mistake_in_a_worker_is_one_line(data: Path, tmp_path: Path) -> None:
    from reducible.pipelines.cluster.ray_session import session

    spec = spec_of(start_step=5)
    with session(cpus=2), pytest.raises(UserError, match="needs the input `start`"):
        task.run(context(tmp_path, data, spec, Execution(workers=2)))


def test_it_runs_as_a_task_of_the_store(data: Path, tmp_path: Path) -> None:
    from reducible.tasks.workflow.attempt import run_here

    store = Store(tmp_path)
    identity = "d" * 64
    with store.staged("dataset", identity, "data", {"spec": {}}) as (_, staging):
        shutil.copytree(data, staging, dirs_exist_ok=True)
    payload = {
        "name": "train",
        "identity": "e" * 64,
        "label": "train",
        "run": "reducible.tasks.train.train_task:run",
        "spec": spec_of(stop_step=4),
        "execution": Execution(),
        "described": {"spec": {}},
        "inputs": {"data": ("dataset", identity)},
        "tags": {},
        "code": "none",
    }
    artifact = run_here(payload, store)
    assert (artifact / STATE / ".metadata").is_file()
    names = {file["path"] for file in store.manifest("train", "e" * 64)["files"]}
    assert {"result.json", "model/model.safetensors", "state/.metadata", "state/__0_0.distcp"} <= names
    assert not store.work("train", "e" * 64).exists()
