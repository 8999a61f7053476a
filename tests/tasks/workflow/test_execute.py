"""Contract 5: pure functions with durable results, skipped when done, failing by name."""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import dag
import pytest

from reducible.tasks.workflow.execute import execute, pending
from reducible.tasks.workflow.on_ray import LOST
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Resources, Task


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from reducible.pipelines.cluster.ray_session import session

    here = str(Path(__file__).parents[2] / "cases")  # where a worker finds dag.py
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *sys.path]))
        with session(cpus=2, gpus=1):
            yield


def calls(store: Store) -> list[str]:
    log = store.root / "calls.txt"
    return sorted(log.read_text().split("\n")[:-1]) if log.exists() else []


def no_session() -> None:
    raise AssertionError("nothing had to run, so Ray must not be started")


def test_runs_a_graph_once_and_then_skips_it(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    a, b = dag.task("a", 1), dag.task("b", 2)
    c = dag.task("c", 10, (a, b))
    outcomes = execute([c], store, nullcontext)
    assert {o.task.label: o.status for o in outcomes.values()} == {"a": "made", "b": "made", "c": "made"}
    assert (outcomes[c.identity].artifact / "sum").read_text() == "13"
    assert calls(store) == ["a", "b", "c"]

    again = execute([c], store, no_session)  # type: ignore[arg-type]
    assert all(o.status == "done" for o in again.values())
    # A further task needs c alone; a and b are not touched again.
    d = dag.task("d", 100, (c,))
    assert (execute([d], store, nullcontext)[d.identity].artifact / "sum").read_text() == "113"
    assert calls(store) == ["a", "b", "c", "d"]


def test_a_failure_takes_its_dependants_along_and_nobody_else(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad, good = dag.task("bad", 7, fail=True), dag.task("good", 2)
    child = dag.task("child", 3, (bad, good))
    grandchild = dag.task("grandchild", 4, (child,))
    outcomes = execute([grandchild, good], store, nullcontext)
    by_label = {o.task.label: o for o in outcomes.values()}
    assert by_label["good"].status == "made"
    assert by_label["bad"].status == "failed"
    assert by_label["bad"].error == "value: 7 is refused; give another"
    for label in ("child", "grandchild"):
        assert by_label[label].status == "skipped"
        assert by_label[label].error == by_label["bad"].error
        assert by_label[label].cause is not None and by_label[label].cause.label == "bad"
    assert calls(store) == ["bad", "good"]


def test_a_killed_worker_is_replaced_and_goes_on_from_its_work_folder(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    killed = dag.task("killed", 5, kill=str(tmp_path / "killed-once"))
    outcome = execute([killed], store, nullcontext)[killed.identity]
    assert outcome.status == "made"
    assert (outcome.artifact / "resumed").read_text() == "half way"
    assert calls(store) == ["killed", "killed"]
    assert not store.work("add", killed.identity).exists()
    assert list((store.root / "staging").iterdir()) == []


def test_a_bug_is_one_line_with_the_place_of_its_traceback(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    task = Task(name="add", version=1, run="dag:bug", spec=dag.Spec(), label="bug")
    outcome = execute([task], store, nullcontext)[task.identity]
    assert outcome.status == "failed"
    assert "ZeroDivisionError: one over nothing" in outcome.error
    assert "Traceback" in (store.work("add", task.identity) / "error.log").read_text()


def test_what_fails_is_tried_again_and_then_given_up_by_name(ray_session: None, tmp_path: Path) -> None:
    store, listener = Store(tmp_path), Listener()
    mended = dag.task("mended", 1, retries=2, fails=2)
    lost = dag.task("lost", 2, retries=1, fails=9)
    mistaken = dag.task("mistaken", 3, retries=5, fail=True)
    child = dag.task("child", 4, (mended, lost))
    outcomes = execute([child, mistaken], store, nullcontext, [listener])
    assert outcomes[mended.identity].status == "made"
    assert outcomes[lost.identity].error == "RuntimeError: not this time (traceback in " + str(
        store.work("add", lost.identity) / "error.log) (tried 2 times)"
    )
    assert outcomes[child.identity].status == "skipped" and outcomes[child.identity].cause is lost
    assert outcomes[mistaken.identity].error == "value: 3 is refused; give another"
    assert sorted(line for line in listener.heard if line.startswith("again")) == ["again lost", *["again mended"] * 2]
    assert calls(store) == ["lost"] * 2 + ["mended"] * 3 + ["mistaken"]


def test_what_kills_its_worker_each_time_is_given_up_and_the_rest_goes_on(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    dies, lives = dag.task("dies", 1, dies=True), dag.task("lives", 2)
    outcomes = execute([dies, lives], store, nullcontext)
    assert outcomes[lives.identity].status == "made"
    assert outcomes[dies.identity].status == "failed" and "(tried 4 times)" in outcomes[dies.identity].error
    assert calls(store).count("dies") == 1 + LOST


def together(outcomes: dict[str, Outcome]) -> int:
    """The most tasks that ran at one time."""
    times = [(o.artifact / "times").read_text().split() for o in outcomes.values() if o.artifact]
    return max(sum(float(a) <= float(began) < float(b) for a, b in times) for began, _ in times)


@pytest.mark.parametrize(
    ("resources", "most"),
    [
        (Resources(cpus=1), 2),
        (Resources(cpus=0.5), 4),
        (Resources(cpus=0, gpus=1), 1),
        (Resources(cpus=0, gpus=1, share=0.25), 4),
    ],
)
def test_tasks_share_a_device_by_what_they_hold_of_it(
    ray_session: None, tmp_path: Path, resources: Resources, most: int
) -> None:
    """Each waits until as many have come as may run at once, so that the next would come too if it could."""
    tasks = [dag.task(f"{n}", n, resources=resources, company=most) for n in range(most + 1)]
    assert together(execute(tasks, Store(tmp_path), nullcontext)) == most


def test_a_task_that_failed_beside_others_is_tried_again_with_the_whole_gpu(ray_session: None, tmp_path: Path) -> None:
    task = dag.task("crowded", 1, resources=Resources(gpus=1, share=0.25), retries=1, fails=1)
    artifact = execute([task], Store(tmp_path), nullcontext)[task.identity].artifact
    assert artifact is not None and (artifact / "attempts.txt").read_text().split() == ["0.25", "1.0"]


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def submitted(self, tasks: list[Task]) -> None:
        self.heard += [f"submitted {task.label}" for task in tasks]

    def finished(self, outcome: Outcome) -> None:
        self.heard.append(f"{outcome.status} {outcome.task.label}")

    def again(self, task: Task, error: str) -> None:
        self.heard.append(f"again {task.label}")

    def tick(self) -> None:
        pass


def test_an_observer_hears_of_every_task(ray_session: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    a = dag.task("a")
    execute([a], store, nullcontext)
    listener = Listener()
    execute([dag.task("b", 2, (a,))], store, nullcontext, [listener])
    assert listener.heard == ["done a", "submitted b", "made b"]


def test_pending_asks_only_for_what_the_unfinished_need(tmp_path: Path) -> None:
    store = Store(tmp_path)
    a, b = dag.task("a", 1), dag.task("b", 2)
    c = dag.task("c", 3, (a, b))
    assert [task.label for task in pending(store, [c])] == ["a", "b", "c"]
    with store.staged("add", c.identity, "c", {"task": "add", "version": 1, "spec": {}, "inputs": {}}):
        pass
    assert pending(store, [c]) == []
