"""Identity survives growth: only what differs from a default enters, and a default that changes raises the version."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import identities
import pytest
from identities import TABLES, training
from pydantic import BaseModel, ConfigDict, Field, create_model

from reducible.models.families.registry import FAMILIES
from reducible.models.families.transformer import TransformerConfig
from reducible.pipelines.plan.plan import state_of, why_new
from reducible.tasks.errors import UserError
from reducible.tasks.train.train_spec import VERSION, TrainSpec
from reducible.tasks.workflow.identity import essence
from reducible.tasks.workflow.store import Store, read_spec
from reducible.tasks.workflow.task import Task, description

TABLE = json.loads(TABLES.read_text())


def test_todays_specs_have_the_identities_that_they_had() -> None:
    """If it fails, finished work is made again everywhere: give a new field the old behaviour as its default."""
    now = identities.identities()
    assert {name: now.get(name) for name in TABLE["identities"]} == TABLE["identities"]
    assert now.keys() == TABLE["identities"].keys(), "write the new ones into the table: tests/cases/identities.py"


def test_a_default_that_changes_raises_the_version() -> None:
    """It changes no identity, so finished work would stand for what it is not."""
    now = identities.defaults()
    for title, defaults in TABLE["defaults"].items():  # a task whose version was raised has another title
        for field, default in defaults.items() if title in now else ():
            assert field in now[title], f"{title}: {field} is gone; raise the version"
            assert now[title][field] == default, f"{title}: {field} has another default; raise the version"
    assert now == TABLE["defaults"], "write the new ones into the table: tests/cases/identities.py"


# Growth


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inner(Frozen):
    share: float = 0.5
    name: str = "plain"


class Adamw(Frozen):
    kind: Literal["adamw"] = "adamw"
    rate: float = 0.1


class Sgd(Frozen):
    kind: Literal["sgd"] = "sgd"
    rate: float = 0.1


class Lion(Frozen):
    kind: Literal["lion"] = "lion"
    rate: float = 0.1


class Untagged(Frozen):
    rate: float = 0.1


class Before(Frozen):
    width: int
    inner: Inner = Inner(share=0.25)
    optimizer: Adamw = Adamw()
    several: tuple[Inner, ...] = ()
    settings: dict[str, int] = Field(default_factory=dict)
    maybe: Inner | None = None


def grown(before: type[BaseModel], **added: Any) -> type[BaseModel]:
    return create_model("Grown", __base__=before, **added)


InnerGrown = grown(Inner, extra=(int | None, None))
After = grown(
    Before,
    later=(Inner, Inner()),
    flag=(bool, False),
    inner=(InnerGrown, InnerGrown(share=0.25)),
    optimizer=(Annotated[Adamw | Sgd | Lion, Field(discriminator="kind")], Adamw()),
    several=(tuple[InnerGrown, ...], ()),  # type: ignore[valid-type]
    maybe=(InnerGrown | Untagged | None, None),  # type: ignore[valid-type]
)
GIVEN: list[dict[str, Any]] = [
    {"width": 3},
    {"width": 3, "inner": {}},
    {"width": 3, "inner": {"share": 0.25}},
    {"width": 3, "inner": {"share": 0.25, "name": "other"}},
    {"width": 3, "optimizer": {"kind": "adamw", "rate": 0.2}},
    {"width": 3, "several": [{}, {"share": 1.0}]},
    {"width": 3, "several": [{}]},
    {"width": 3, "settings": {"a": 1}},
    {"width": 3, "maybe": {}},
    {"width": 4},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_what_a_spec_says_is_the_same_after_it_grew(given: dict[str, Any]) -> None:
    assert essence(Before.model_validate(given)) == essence(After.model_validate(given))


def test_specs_that_differ_have_different_essences() -> None:
    more: list[dict[str, Any]] = [
        {"width": 3, "flag": True},
        {"width": 3, "later": {"share": 0.1}},
        {"width": 3, "inner": {"share": 0.25, "extra": 0}},
        {"width": 3, "optimizer": {"kind": "sgd"}},
        {"width": 3, "optimizer": {"kind": "lion"}},
        {"width": 3, "optimizer": {"kind": "sgd", "rate": 0.2}},
        {"width": 3, "maybe": {"rate": 0.1}},
        {"width": 3, "maybe": Untagged()},
    ]
    specs = [After.model_validate(given) for given in GIVEN + more]
    for one, other in itertools.combinations(specs, 2):
        assert (one == other) == (essence(one) == essence(other)), (one, other)


def test_a_default_said_aloud_is_the_default_and_true_is_not_one() -> None:
    both = grown(Before, number=(float, 1), mixed=(bool | int, True))
    silent = essence(both.model_validate({"width": 3}))
    assert silent == {"width": 3}
    assert essence(both.model_validate({"width": 3, "number": 1.0, "inner": {"share": 0.25}, "settings": {}})) == silent
    assert essence(both.model_validate({"width": 3, "mixed": 1})) != silent


def made(store: Store, task: Task) -> None:
    with store.staged(task.name, task.identity, task.title, description(task)):
        pass


def task_of(spec: BaseModel, name: str = "add", version: int = 1) -> Task:
    return Task(name=name, version=version, run="", spec=spec)


def test_a_store_made_before_a_field_was_added_is_done_after(tmp_path: Path) -> None:
    store = Store(tmp_path)
    given = {"width": 3, "inner": {"name": "other"}}
    made(store, task_of(Before.model_validate(given)))
    grown_task = task_of(After.model_validate(given))
    assert state_of(store, grown_task, waits=False)[0] == "done"
    read = read_spec(store.artifact("add", grown_task.identity), After)
    assert read == After.model_validate(given)
    assert store.manifest("add", grown_task.identity)["spec"]["inner"]["share"] == 0.5  # all of it, defaults too


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"flag": True}, "flag (False -> True)"),
        ({"later": {"share": 0.1}}, "later.share (0.5 -> 0.1)"),
        ({"width": 4}, "width (3 -> 4)"),
        ({"inner": {"share": 0.25}}, "inner.name (other -> plain), inner.share (0.5 -> 0.25)"),
        ({"optimizer": {"kind": "sgd"}}, "optimizer.kind (adamw -> sgd)"),
        ({"maybe": {}}, "maybe"),
    ],
    ids=str,
)
def test_plan_names_the_field_that_changed(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    store = Store(tmp_path)
    given = {"width": 3, "inner": {"name": "other"}}
    made(store, task_of(Before.model_validate(given)))
    found = why_new(store, task_of(After.model_validate(given | changed)))
    assert found == f"differs from a finished one in {why}"


def test_plan_names_a_version_and_an_identity_of_another_kind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spec = Before(width=3)
    made(store, task_of(spec))
    assert why_new(store, task_of(spec, version=2)) == "differs from a finished one in version (1 -> 2)"
    with store.staged("old", "of-all-fields", "x", description(task_of(spec, "old"))):
        pass
    assert why_new(store, task_of(spec, "old")).startswith("a finished one has the same spec")


def test_a_spec_of_other_code_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    task = task_of(After.model_validate({"width": 3}))
    made(store, task)
    with pytest.raises(UserError, match="made by other code"):
        read_spec(store.artifact("add", task.identity), Before)


# Trainings: the family's configuration is a dict, whose defaults are the family's


@dataclass(frozen=True)
class GrownConfig(TransformerConfig):
    window: int | None = None


def test_a_training_stays_done_when_its_family_gets_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    config = TransformerConfig(vocabulary=256, width=64)
    made(store, task_of(training(model=identities.settings(config)), "train", VERSION))
    monkeypatch.setitem(FAMILIES, "transformer", replace(FAMILIES["transformer"], config=GrownConfig))
    grown_config = GrownConfig(vocabulary=256, width=64)
    same = task_of(training(model=identities.settings(grown_config)), "train", VERSION)
    assert state_of(store, same, waits=False)[0] == "done"
    spec = read_spec(store.artifact("train", same.identity), TrainSpec)
    assert GrownConfig(**spec.model) == grown_config
    other = task_of(training(model=identities.settings(replace(grown_config, window=8))), "train", VERSION)
    assert why_new(store, other) == "differs from a finished one in model.window (default -> 8)"


def test_what_the_data_decide_enters_a_training_by_its_input_alone() -> None:
    one, other = (
        task_of(training(model={"vocabulary": vocabulary, "width": 64}), "train") for vocabulary in (256, 300)
    )
    assert one.identity == other.identity
    assert one.identity != task_of(training(model={"vocabulary": 256, "width": 65}), "train").identity
    data = [Task(name="dataset", version=version, run="", spec=Inner()) for version in (1, 2)]
    given = [replace_inputs(one, dataset) for dataset in data]
    assert given[0].identity != given[1].identity


def replace_inputs(task: Task, data: Task) -> Task:
    return Task(name=task.name, version=task.version, run="", spec=task.spec, inputs={"data": data})
