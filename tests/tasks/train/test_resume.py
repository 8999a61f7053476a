"""Contract 4: killed and resumed equals never killed; and what checkpoints survive."""

import json
import logging
import random
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import assert_identical, deterministic_rows, final_state, newest_state
from training_cases import Interrupted, alone, interrupted_at, on_ranks, ragged_examples, small_spec

from reducible.tasks.errors import UserError
from reducible.tasks.train import checkpoints
from reducible.tasks.train.checkpoints import Checkpoints
from reducible.tasks.train.folders import CHECKPOINTS, STATE, checkpoint_name
from reducible.tasks.train.guards import FEWEST
from reducible.tasks.train.loop import train
from reducible.tasks.train.parallel import World
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, read_rows


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("never-killed")
    assert alone("train_alone.py", str(work)) == 0
    assert [row["step"] for row in read_rows(work / "record")] == sorted({*range(3, 31, 3), *range(4, 31, 4)})
    return work


def killed_and_resumed(work: Path, seed: int) -> None:
    chance = random.Random(seed)
    kills = 0
    for step in sorted(chance.sample(range(5, 29), 2)):
        kills += alone("train_alone.py", str(work), str(step), str(chance.uniform(0, 0.02))) != 0
    assert kills  # the last may have come too late to kill anything
    assert alone("train_alone.py", str(work)) == 0


def test_killed_and_resumed_equals_never_killed(never_killed: Path, tmp_path: Path) -> None:
    """SIGKILL at random places, dropout on: parameters, optimizer state and metrics to the bit."""
    killed_and_resumed(tmp_path, seed=1)
    assert_identical(tmp_path, never_killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_killed_anywhere_and_resumed_equals_never_killed(never_killed: Path, tmp_path: Path, seed: int) -> None:
    killed_and_resumed(tmp_path, seed)
    assert_identical(tmp_path, never_killed)


@pytest.mark.slow
def test_a_killed_rank_of_two_resumed_equals_never_killed(tmp_path: Path) -> None:
    on_ranks("train_alone.py", 2, str(tmp_path / "straight"))
    with pytest.raises(AssertionError):
        on_ranks("train_alone.py", 2, str(tmp_path / "killed"), "14", "0.01")
    assert checkpoints.complete(tmp_path / "killed" / CHECKPOINTS)[-1].name < checkpoint_name(30)
    on_ranks("train_alone.py", 2, str(tmp_path / "killed"))
    assert_identical(tmp_path / "killed", tmp_path / "straight")


def run(
    spec: TrainSpec, work: Path, attempt: str = "a", stop: int = -1, start: Path | None = None, **execution: Any
) -> TrainResult:
    examples = interrupted_at(ragged_examples(spec), stop)
    record = Record(work / "record", attempt)
    return train(
        spec,
        Execution(**({"checkpoint_every": 4, "log_every": 1} | execution)),
        data=examples,
        start=start,
        work=work,
        record=record,
    )


@pytest.mark.parametrize(
    "damage", ["altered", "torn", "missing", "no manifest"], ids=["altered", "torn", "missing", "no-manifest"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    spec = small_spec()
    with pytest.raises(Interrupted):
        run(spec, tmp_path, stop=9)
    last = checkpoints.complete(tmp_path / CHECKPOINTS)[-1]
    assert last.name == checkpoint_name(8)
    file = last / "__0_0.distcp"
    content = file.read_bytes()
    if damage == "altered":
        file.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage == "torn":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        file.unlink()
    else:
        (last / "manifest.json").write_text('{"files"')
    with caplog.at_level(logging.INFO, "reducible.tasks.train"):
        assert run(spec, tmp_path, "b").status == "finished"
    ours = [record for record in caplog.records if record.name.startswith("reducible.tasks.")]
    warnings = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert checkpoint_name(8) in warnings[0]
    assert ("manifest.json" if damage == "no manifest" else "__0_0.distcp") in warnings[0]
    assert any("going on from" in m and checkpoint_name(4) in m for m in caplog.messages)
    run(spec, tmp_path / "straight")
    assert_identical(tmp_path, tmp_path / "straight")


def test_a_half_written_checkpoint_is_nobodys(tmp_path: Path) -> None:
    spec = small_spec()
    with pytest.raises(Interrupted):
        run(spec, tmp_path, stop=6)
    complete = checkpoints.complete(tmp_path / CHECKPOINTS)
    part = tmp_path / CHECKPOINTS / f".{checkpoint_name(5)}.part"
    part.mkdir()
    (part / "__0_0.distcp").write_bytes(b"half")
    assert checkpoints.newest(tmp_path / CHECKPOINTS, World()) == complete[-1]
    run(spec, tmp_path, "b")
    assert not part.exists()


def test_rows_travel_with_the_checkpoint(tmp_path: Path) -> None:
    """A work folder whose record was lost, or that was moved without it, has the same rows in the end."""
    spec = small_spec()
    with pytest.raises(Interrupted):
        run(spec, tmp_path, stop=9)
    shutil.rmtree(tmp_path / "record")
    run(spec, tmp_path, "b")
    run(spec, tmp_path / "straight")
    assert deterministic_rows(tmp_path) == deterministic_rows(tmp_path / "straight")


def test_a_checkpoint_behind_the_trainings_back_does_not_see_later_weights(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, World(), keep_last=2)
    weights = {"a": torch.arange(1000.0), "b": torch.ones(())}
    expected = {name: tensor.clone() for name, tensor in weights.items()}
    saver.save(1, weights, {}, [])
    for tensor in weights.values():
        tensor.mul_(-1)
    saver.close()
    for name, tensor in final_state(tmp_path / checkpoint_name(1)).items():
        assert torch.equal(tensor, expected[name])


def test_it_keeps_the_last_few_and_the_best(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, World(), keep_last=2)
    for step, loss in enumerate([3.0, 1.0, 2.0, None, 2.5, None], start=1):
        saver.save(step, {"a": torch.ones(2)}, {"validated": loss}, [])
    saver.close()
    assert [path.name for path in checkpoints.complete(tmp_path)] == [f"step-0000000{step}" for step in (2, 5, 6)]


def test_a_damaged_checkpoint_pushes_no_sound_one_out(tmp_path: Path) -> None:
    """Resumed with another interval, later checkpoints come before the damaged one's step."""
    saver = Checkpoints(tmp_path, World(), keep_last=2)
    for step in (2, 8):
        saver.save(step, {"a": torch.ones(2)}, {}, [])
    saver.close()
    (tmp_path / checkpoint_name(8) / "progress.json").write_text("{")
    assert checkpoints.newest(tmp_path, World()) == tmp_path / checkpoint_name(2)
    saver = Checkpoints(tmp_path, World(), keep_last=2)
    saver.save(3, {"a": torch.ones(2)}, {}, [])
    saver.close()
    assert [path.name for path in checkpoints.complete(tmp_path)] == [checkpoint_name(2), checkpoint_name(3)]
    assert checkpoints.newest(tmp_path, World()) == tmp_path / checkpoint_name(3)


def test_an_old_unreadable_checkpoint_fails_no_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = Checkpoints(tmp_path, World(), keep_last=3)
    saver.save(1, {"a": torch.ones(2)}, {"validated": 1.0}, [])
    saver.finish()
    (tmp_path / checkpoint_name(1) / "progress.json").write_text("{")
    saver.save(2, {"a": torch.ones(2)}, {"validated": 2.0}, [])
    saver.close()
    assert saver.newest == tmp_path / checkpoint_name(2)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("held", ["shape", "name"])
def test_the_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path, held: str) -> None:
    saver = Checkpoints(tmp_path, World(), keep_last=1)
    saver.save(1, {"model.a": torch.ones(2)}, {}, [])
    saver.close()
    state = {"model.a": torch.ones(3)} if held == "shape" else {"model.a": torch.ones(2), "model.b": torch.ones(1)}
    with pytest.raises(UserError, match=r"model\.a is \(2,\) there and \(3,\)" if held == "shape" else r"'model\.b'"):
        checkpoints.load(tmp_path / checkpoint_name(1), state, World())


def test_a_full_disk_costs_a_line_in_the_log_and_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel itself refuses to write on: a limit on file size, lifted before the last checkpoint."""
    spec = small_spec()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    examples = ragged_examples(spec)

    class Filling:
        def __init__(self) -> None:
            self.fetch, self.units = examples.train.fetch, examples.train.units

        def micro_batches(self, step: int) -> Any:
            if step == 7:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            if step == 11:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return examples.train.micro_batches(step)

    try:
        result = train(
            spec,
            Execution(checkpoint_every=4, log_every=4),
            data=replace(examples, train=Filling()),  # type: ignore[arg-type]
            start=None,
            work=tmp_path / "full",
            record=Record(tmp_path / "full" / "record", "a"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert result.status == "finished"
    ours = [record for record in caplog.records if record.name.startswith("reducible.tasks.")]
    errors = [record.getMessage() for record in ours if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "\n" not in errors[0]
    assert "step 8" in errors[0] and "File too large" in errors[0] and checkpoint_name(4) in errors[0]
    names = [path.name for path in (tmp_path / "full" / CHECKPOINTS).iterdir()]
    assert sorted(names) == [checkpoint_name(4), checkpoint_name(12)]
    run(spec, tmp_path / "straight", log_every=4)
    assert_identical(tmp_path / "full", tmp_path / "straight")


def test_the_spike_guard_remembers_across_a_resume(tmp_path: Path) -> None:
    """A threshold so low that it skips about every third step once it has seen enough of them."""
    spec = small_spec(stop_step=FEWEST + 12, spike_guard=0.1)
    with pytest.raises(Interrupted):
        run(spec, tmp_path, stop=FEWEST + 6)
    run(spec, tmp_path, "b")
    run(spec, tmp_path / "straight")
    assert deterministic_rows(tmp_path)[-1]["train/skipped_steps"] > 1
    assert_identical(tmp_path, tmp_path / "straight")


def artifact(work: Path) -> Path:
    """The part of a train artifact that a later segment starts from."""
    shutil.copytree(checkpoints.complete(work / CHECKPOINTS)[-1], work / "artifact" / STATE)
    return work / "artifact"


def test_trunk_segments_and_a_branch_equal_straight_runs(tmp_path: Path) -> None:
    model = {"vocabulary": 17, "width": 16, "depth": 2, "heads": 2, "dropout": 0.2}
    constant = {"kind": "constant", "warmup_steps": 3}

    def segment(start: int, stop: int, **schedule: Any) -> TrainSpec:
        return small_spec(model=model, start_step=start, stop_step=stop, schedule=constant | schedule, spike_guard=3.0)

    # Log rows every 5 steps and a stop at 7: what a segment has not logged yet travels to the next.
    run(segment(0, 7), tmp_path / "first", log_every=5)
    run(segment(7, 15), tmp_path / "second", start=artifact(tmp_path / "first"), log_every=5)
    run(segment(15, 20), tmp_path / "third", start=artifact(tmp_path / "second"), log_every=5)
    run(segment(15, 19, kind="wsd", cooldown_steps=4), tmp_path / "branch", start=tmp_path / "second" / "artifact")
    run(segment(0, 20), tmp_path / "trunk", log_every=5)
    run(segment(0, 19, kind="wsd", cooldown_steps=4), tmp_path / "straight")

    for one, other in (("third", "trunk"), ("branch", "straight")):
        first, second = newest_state(tmp_path / one), newest_state(tmp_path / other)
        assert all(torch.equal(first[name], second[name]) for name in second)
        assert deterministic_rows(tmp_path / one)[-1] == deterministic_rows(tmp_path / other)[-1]
    rows = {
        row["step"]: row["train/loss"]
        for name in ("first", "second", "third")
        for row in deterministic_rows(tmp_path / name)
        if row["step"] % 5 == 0
    }
    assert rows == {r["step"]: r["train/loss"] for r in deterministic_rows(tmp_path / "trunk") if r["step"] % 5 == 0}


def test_a_start_that_stopped_elsewhere_is_refused(tmp_path: Path) -> None:
    run(small_spec(stop_step=5, schedule={"kind": "constant"}), tmp_path / "first")
    start = artifact(tmp_path / "first")
    with pytest.raises(UserError, match="stopped at step 5, but start_step is 6"):
        run(small_spec(start_step=6, stop_step=9, schedule={"kind": "constant"}), tmp_path / "second", start=start)
    with pytest.raises(UserError, match="needs the input `start`"):
        run(small_spec(start_step=6, stop_step=9, schedule={"kind": "constant"}), tmp_path / "third")
    progress = json.loads((start / STATE / "progress.json").read_text())
    (start / STATE / "progress.json").write_text(json.dumps(progress | {"validated": 0.0}))
    with pytest.raises(UserError, match="progress.json"):
        run(small_spec(start_step=5, stop_step=9, schedule={"kind": "constant"}), tmp_path / "fourth", start=start)
