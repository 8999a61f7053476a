"""The store commits once, last, and never shows half an artifact; identities are canonical."""

import errno
import hashlib
import json
from pathlib import Path

import dag
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from reducible.tasks.errors import UserError
from reducible.tasks.workflow.identity import canonical, fingerprint
from reducible.tasks.workflow.store import Store, read_manifest, verify
from reducible.tasks.workflow.task import finished

DESCRIBED = {"task": "add", "version": 1, "spec": {"value": 1}, "inputs": {}}


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staged("add", "id", "an addition", DESCRIBED) as (_, staging):
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_bytes(b"content")
        assert not store.committed("add", "id")
    manifest = store.manifest("add", "id")
    digest = hashlib.sha256(b"content").hexdigest()
    assert manifest["files"] == [{"path": "deep/file", "size": 7, "sha256": digest}]
    assert manifest["spec"] == {"value": 1} and manifest["code"]
    verify(store.artifact("add", "id"))


@pytest.mark.parametrize("damage", ["altered", "torn", "missing"])
def test_verify_names_the_damaged_file(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    with store.staged("add", "id", "x", DESCRIBED) as (_, staging):
        (staging / "file").write_bytes(b"content")
    file = store.artifact("add", "id") / "file"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"c0ntent" if damage == "altered" else b"cont")
    with pytest.raises(UserError, match="file: (missing|differs)"):
        verify(store.artifact("add", "id"))


def test_of_two_writers_the_first_commit_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staged("add", "id", "x", DESCRIBED) as (_, slow):
        (slow / "who").write_text("slow")
        with store.staged("add", "id", "x", DESCRIBED) as (_, fast):
            (fast / "who").write_text("fast")
    assert (store.artifact("add", "id") / "who").read_text() == "fast"
    assert list((tmp_path / "staging").iterdir()) == []


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.staged("add", "id", "x", DESCRIBED) as (_, staging):
        (staging / "half").write_text("h")
        raise RuntimeError
    assert not store.artifact("add", "id").exists()
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match="no space left"), store.staged("add", "id", "x", DESCRIBED):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_work_goes_when_the_artifact_is_there_and_stays_when_it_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = store.work("add", "id")
    work.mkdir(parents=True)
    with pytest.raises(RuntimeError), store.staged("add", "id", "x", DESCRIBED):
        raise RuntimeError
    assert work.exists()
    with store.staged("add", "id", "x", DESCRIBED):
        pass
    assert not work.exists()


def test_discard_makes_a_task_pending_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staged("add", "id", "x", DESCRIBED):
        pass
    store.discard("add", "id")
    assert not store.committed("add", "id")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: damaged"):
        read_manifest(tmp_path)


def test_a_root_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--root"):
        Store(tmp_path / "file" / "root")
    with pytest.raises(UserError, match="object store"):
        Store("s3://bucket/root")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain)
def test_identity_survives_a_round_trip_through_json_and_key_order(value: object) -> None:
    again = json.loads(json.dumps(canonical(value)))
    assert fingerprint(again) == fingerprint(value)
    if isinstance(value, dict):
        assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)


class Holder(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    inner: object


@pytest.mark.parametrize("bad", [print, Path("x"), float("nan"), float("inf"), {1: 2}, object(), {1, 2}])
def test_what_has_no_canonical_form_is_refused_by_name(bad: object) -> None:
    with pytest.raises(TypeError, match="inner"):
        fingerprint(Holder(inner=bad))


def test_an_artifact_stands_for_its_task_as_an_input() -> None:
    a = dag.task("a", 1)
    stand_in = finished("add", a.identity)
    assert dag.task("b", 2, (stand_in,)).identity == dag.task("b", 2, (a,)).identity


def test_an_identity_holds_spec_version_and_inputs_but_not_labels() -> None:
    a = dag.task("a", 1)
    assert dag.task("renamed", 1).identity == a.identity
    assert dag.task("a", 2).identity != a.identity
    assert dag.task("c", 1, (a,)).identity != dag.task("c", 1, (dag.task("b", 2),)).identity


@pytest.mark.parametrize("root", ["", "s3://bucket/runs"])
def test_a_root_that_is_no_folder_is_refused(root: str) -> None:
    with pytest.raises(UserError, match="^--root"):
        Store(root)


def test_a_root_of_a_user_that_nobody_has_is_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("~nobody-has-this-name/runs").root == tmp_path / "~nobody-has-this-name" / "runs"
