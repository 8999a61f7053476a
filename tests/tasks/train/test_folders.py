"""The name of a checkpoint stands in one place: changed there, training, resuming and plan follow."""

from pathlib import Path

import pytest
from resume_cases import assert_identical
from training_cases import Interrupted, interrupted_at, ragged_examples, small_spec

from reducible.pipelines.plan.plan import state_of
from reducible.tasks.train import folders
from reducible.tasks.train.loop import train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


def run(work: Path, stop: int = -1) -> TrainResult:
    spec = small_spec()
    record = Record(work / "record", "a")
    execution = Execution(checkpoint_every=4, log_every=1)
    return train(
        spec, execution, data=interrupted_at(ragged_examples(spec), stop), start=None, work=work, record=record
    )


def test_a_checkpoint_by_another_name_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PREFIX", "at-")
    store = Store(tmp_path / "root")
    task = Task("train", 3, "reducible.tasks.train.train_task:run", small_spec())
    work = store.work(task.name, task.identity)
    with pytest.raises(Interrupted):
        run(work, stop=9)
    assert [path.name for path in folders.complete(work / folders.CHECKPOINTS)][-1] == "at-00000008"
    assert state_of(store, task, waits=True) == ("will run", "continues from at-00000008")
    assert run(work).status == "finished"
    run(tmp_path / "straight")
    assert_identical(work, tmp_path / "straight")
