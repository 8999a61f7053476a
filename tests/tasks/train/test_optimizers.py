"""An optimizer is its own file and one line: a toy one goes everywhere, and makes nothing finished stale."""

import json
import signal
from pathlib import Path

import pytest
import torch
from identities import TABLES, identities
from in_process import make
from resume_cases import deterministic_rows, newest_state
from toy_sgd import LINE, Sgd, SgdSpec
from training_cases import alone, on_ranks, small_spec

from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.layers.width_rule import one_rate
from reducible.models.memory.step_plan import planned
from reducible.pipelines.plan.memory import Asked, setting_of, table
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.run import run_tasks
from reducible.tasks.errors import UserError
from reducible.tasks.train.optimizers.registry import OPTIMIZERS
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.store import Store


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "toy-sgd", LINE)


def recipe(folder: Path, *overrides: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(
        "data: {generated: {documents: 60, length: 200}, tokenizer: {kind: bytes}, sequence: 32}\n"
        "model: {width: 16, depth: 1, heads: 2}\n"
        "train: {tokens: 2048, batch: 256, optimizer: {kind: toy-sgd, learning_rate: 1e-2, momentum: 0.5}}\n"
    )
    return path


def test_its_steps_are_those_of_torchs(registered: None) -> None:
    torch.manual_seed(1)
    config = TransformerConfig(vocabulary=11, width=16, depth=1, heads=2)
    ours, theirs = Transformer(config), Transformer(config)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Sgd(ours, one_rate(ours.parameter_groups()), SgdSpec(weight_decay=0.0, clip=None))
    peer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        peer.step()
        gradients = optimizer.gradients()
        optimizer.step(gradients, optimizer.norm(gradients), 0.1, torch.zeros(()))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_planned_and_run(tmp_path: Path, registered: None) -> None:
    loaded, store = load_recipe(recipe(tmp_path), ()), Store(tmp_path / "root")
    tasks = run_tasks(loaded, store)
    spec = tasks.train.spec
    assert isinstance(spec, TrainSpec) and spec.optimizer == SgdSpec(learning_rate=1e-2, momentum=0.5)
    plan = planned(setting_of(loaded, spec, Asked())[0])
    assert plan.moments == 4 * plan.trained
    assert any(line.startswith("SGD's velocity ") for line in table(plan, "SGD's velocity"))
    make([tasks.train], store)
    result = json.loads((store.artifact("train", tasks.train.identity) / "result.json").read_text())
    assert result["status"] == "finished"


def test_it_makes_nothing_finished_stale(registered: None) -> None:
    assert identities() == json.loads(TABLES.read_text())["identities"]
    assert TrainSpec.model_validate_json(small_spec().model_dump_json()) == small_spec()
    chosen = small_spec(optimizer={"kind": "toy-sgd", "momentum": 0.5})
    assert TrainSpec.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.optimizer.kind=adamv", "train.optimizer: there is no optimizer 'adamv'; nearest is 'adamw'"),
        ("train.optimizer.betas=[0.9,0.95]", "train.optimizer.betas: unknown key"),
        ("train.optimizer.momentum=2", "train.optimizer.momentum: 2 is not allowed"),
        ("train.optimizer.learning_rate=null", "optimizer.learning_rate: must be a number"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, registered: None, override: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        load_recipe(recipe(tmp_path), (override,))
    assert message in str(found.value) and "\n" not in str(found.value)


def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    assert alone("toy_sgd.py", str(tmp_path / "straight")) == 0
    assert alone("toy_sgd.py", str(tmp_path / "killed"), "9", "0") == -signal.SIGKILL
    assert alone("toy_sgd.py", str(tmp_path / "killed")) == 0
    one, other = newest_state(tmp_path / "straight"), newest_state(tmp_path / "killed")
    assert one.keys() == other.keys() and any(name.startswith("optimizer.velocity.") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert deterministic_rows(tmp_path / "straight") == deterministic_rows(tmp_path / "killed")


def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    on_ranks("toy_sgd.py", 1, str(tmp_path / "one"))
    on_ranks("toy_sgd.py", 2, str(tmp_path / "two"))
    one, two = newest_state(tmp_path / "one"), newest_state(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
