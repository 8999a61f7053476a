"""Families from outside the package go through every command: one for each kind of data (tests/cases/toy_families.py).

Tasks run in this process one after another, and everything else is as a person gives it; the slow tests are under Ray.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_families
import yaml
from in_process import called, said, without_ray
from toy_families import TEXT, ToyText

from reducible.models.cost.ledger import Lengths
from reducible.models.families import registry
from reducible.models.families.registry import FAMILIES
from reducible.models.loss import Loss
from reducible.pipelines.cluster.ray_session import session
from reducible.pipelines.plan.plan import state_of
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.run import run_tasks
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.train.build import build, refuse_other_code
from reducible.tasks.train.parallel import World
from reducible.tasks.workflow.store import Store, write_manifest
from reducible.tasks.workflow.task import Task, description

KINDS = ("text", "sentences", "pairs", "series")
MARKOV = {"generated": {"documents": 100, "length": 12, "symbols": 6}, "tokenizer": {"kind": "bytes"}, "sequence": 16}
DATA: dict[str, dict[str, Any]] = {
    "text": MARKOV,
    "sentences": MARKOV,
    "pairs": {
        "kind": "pairs",
        "generated": {"kind": "reverse", "examples": 200, "length": 6, "shortest": 3, "symbols": 6},
        "tokenizer": {"kind": "bytes"},
        "sequence": 16,
    },
    "series": {"kind": "series", "generated": {"series": 60, "length": 16}, "sequence": 16},
}
EVALUATE: dict[str, dict[str, Any]] = {
    "text": {"sample_tokens": 5},
    "sentences": {"sample_tokens": 5, "importance_samples": 2},
    "pairs": {"decoded": 4},
    "series": {"importance_samples": 2, "horizon": 4},
}
PROMPTS = {"text": "ab", "sentences": "ab", "pairs": "ab", "series": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all kinds, as MLflow takes seconds to make its database."""
    return tmp_path_factory.mktemp("outside")


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where nothing is registered yet and tasks run in this process."""
    without_ray(monkeypatch)
    monkeypatch.setattr("reducible.models.families.registry.FAMILIES", dict(FAMILIES))
    monkeypatch.chdir(folder)
    return folder


def written(folder: Path, kind: str, module: str) -> str:
    """The name of a recipe."""
    recipe = {
        "data": DATA[kind],
        "model": {"family": f"{module}:{kind.upper()}", "width": 4},
        "train": {"tokens": 1000, "batch": 128, "validation": {"units": 128}},
        "evaluate": {"units": 128, "samples": 1, **EVALUATE[kind]},
    }
    (folder / f"toy-{kind}.yaml").write_text(yaml.safe_dump(recipe))
    return f"toy-{kind}.yaml"


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, where a user's package has the families, and workers of Ray run the tasks."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_models").mkdir()
    (folder / "my_models" / "__init__.py").touch()
    shutil.copy(toy_families.__file__, folder / "my_models" / "families.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr("reducible.models.families.registry.FAMILIES", dict(FAMILIES))
        with session(cpus=2):  # commands use what is open, so that Ray starts once and not for each
            yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_models"]:
        del sys.modules[name]


COMMANDS = {
    "plan": ["plan", "{recipe}", "--memory-report"],
    "run": ["run", "{recipe}"],
    "evaluate": ["evaluate", "toy-{kind}"],
    "sample": ["sample", "toy-{kind}", "--tokens", "5", "--prompt", "{prompt}"],
    "finetune": ["finetune", "toy-{kind}", "finetune.rank=1", "train.tokens=256", "data.generated={other}"],
    "sweep": [
        "sweep",
        "{recipe}",
        "name=sweep-{kind}",
        "sweep={{tokens: [256, 512], widths: [2, 4, 8]}}",
        "train.batch=64",
    ],
}


SAID = {
    "plan": ["peak", "inference         weights", "a sequence"],
    "run": ["made    train toy-{kind}", "made    evaluate toy-{kind}", "reducible sample"],
    "evaluate": ["toy-{kind}: "],
    "sample": [],
    "finetune": ["made    train toy-{kind}-lora", "change  from", "adapter "],
    "sweep": ["sweep-{kind}: 6 cells", "6 runs, 0 excluded", "report.html"],
}


def play(kind: str, recipe: str, names: Iterable[str]) -> None:
    """Gives these commands and looks at what they say."""
    words = {"recipe": recipe, "kind": kind, "prompt": PROMPTS[kind], "other": json.dumps(DATA[kind]["generated"])}
    for name in names:
        output = said(*(word.format(**words) for word in COMMANDS[name]))
        assert output.strip() and "nan" not in output
        for part in SAID[name]:
            assert part.format(kind=kind) in output, output


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_takes_a_family_from_outside(kind: str, here: Path) -> None:
    recipe = written(here, kind, "toy_families")
    play(kind, recipe, [name for name in COMMANDS if name != "sweep"])
    assert "done      train" in said("plan", recipe)
    if kind_named(kind).served is not None:
        assert loaded_from_mlflow(here, f"toy-{kind}") == 2


@pytest.mark.parametrize("kind", ["series", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[:-1])])
def test_a_sweep_takes_a_family_from_outside(kind: str, here: Path) -> None:
    play(kind, written(here, kind, "toy_families"), ["sweep"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_ray_find_a_family_in_the_folder_of_the_command(kind: str, on_ray: Path) -> None:
    play(kind, written(on_ray, kind, "my_models.families"), ("run", "evaluate", "sample", "finetune"))


def loaded_from_mlflow(folder: Path, name: str) -> int:
    """Rows that the registered model gives for two texts, in a process that has only what MLflow keeps."""
    program = f"""
import mlflow
mlflow.set_tracking_uri("sqlite:///{folder}/.reducible/mlflow.db")
print(len(mlflow.pyfunc.load_model("models:/{name}@best").predict(["ab", "ba"], params={{"tokens": 3}})))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "ERROR", "PYTHONPATH": ""}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_plan_says_that_the_code_of_a_family_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity changes with the code: what was trained before is no longer what would be trained."""
    store, recipe = Store(tmp_path / "root"), tmp_path / written(tmp_path, "text", "toy_families")

    def trained(code: str) -> Task:
        known = {**FAMILIES, "toy_families:TEXT": replace(TEXT, name="toy_families:TEXT", code=code)}
        monkeypatch.setattr("reducible.models.families.registry.FAMILIES", known)
        return run_tasks(load_recipe(recipe), store).train

    first = trained(f"sha256 {'1' * 64}")
    folder = store.artifact("train", first.identity)
    folder.mkdir(parents=True)
    write_manifest(folder, description(first), identity=first.identity, label="train toy", attempt="a", started=0.0)
    assert state_of(store, first, False)[0] == "done"
    changed = "differs from a finished one in the family's code"
    assert state_of(store, trained(f"sha256 {'2' * 64}"), True) == ("will run", changed)
    released = "differs from a finished one in the family's code (toys 1.0 -> toys 1.1)"
    write_manifest(folder, description(trained("toys 1.0")), identity="b", label="train toy", attempt="a", started=0.0)
    assert state_of(store, trained("toys 1.1"), True) == ("will run", released)


def test_commands_say_that_other_code_trained_the_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(here, "text", "toy_families")
    said("run", recipe)
    warning = "the code of toy_families:TEXT is not the code that trained this model"
    commands = [
        ("sample", "toy-text", "--tokens", "3"),
        ("evaluate", "toy-text", "evaluate.units=64"),
        ("finetune", "toy-text", "train.tokens=128", f"data.generated={json.dumps(MARKOV['generated'])}"),
    ]
    assert warning not in said(*commands[0])
    changed = replace(TEXT, name="toy_families:TEXT", code=f"sha256 {'2' * 64}")
    monkeypatch.setitem(registry.FAMILIES, "toy_families:TEXT", changed)
    for command in commands:
        assert said(*command).count(warning) == 1


def test_code_that_changes_while_a_command_runs_is_not_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = run_tasks(load_recipe(here / written(here, "text", "toy_families")), Store(here / "root")).train
    changed = replace(TEXT, name="toy_families:TEXT", code=f"sha256 {'3' * 64}")
    monkeypatch.setitem(registry.FAMILIES, "toy_families:TEXT", changed)
    with pytest.raises(UserError, match="the code of toy_families:TEXT changed after the command had read it"):
        refuse_other_code(changed, task.spec)


class Means(ToyText):
    """A newcomer's: the loss of a batch is its mean."""

    def forward(self, batch: dict[str, Any]) -> Loss:
        nats, units, parts = super().forward(batch)
        return Loss(nats / units, units, parts)


def refused(*arguments: object) -> str:
    result = called(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output + repr(result.exception)
    return result.output.strip().splitlines()[-1]


def no_cost(config: Any, lengths: Any) -> Any:
    raise NotImplementedError("later")


NONE = replace(TEXT.cost(TEXT.config(11), None), forward_flops_per_unit=0.0, training_flops_per_unit=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "command", "said"),
    [
        ({"cost": no_cost}, "plan", "the cost failed: NotImplementedError: later"),
        ({"cost": lambda config, lengths: None}, "plan", "cost returns a NoneType, and must return a Cost"),
        ({"cost": lambda config, lengths: NONE}, "plan", "cost says 171 parameters, and the module has"),
        ({"cost": lambda config, lengths: NONE}, "sweep", "says 0 training FLOPs a token"),
    ],
)
def test_a_broken_family_is_one_line(
    changes: dict[str, Any], command: str, said: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(TEXT, name="toy_families:TEXT", code="toys 1.0", **changes)
    monkeypatch.setitem(registry.FAMILIES, "toy_families:TEXT", broken)
    recipe = written(here, "text", "toy_families")
    sweep = ["sweep={budgets: [1e8, 1e9], widths: [2, 4]}"] if command == "sweep" else []
    assert said in refused(command, recipe, *sweep)


@pytest.mark.parametrize("name", ["null", "7", "[a]", "true", '""'])
def test_what_is_no_name_of_a_family(name: str, here: Path) -> None:
    said = refused("plan", written(here, "text", "toy_families"), f"model.family={name}")
    assert "is not allowed; it must be one of transformer" in said


def test_a_mean_is_not_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(TEXT, name="toy_families:TEXT", code="toys 1.0", build=Means)
    monkeypatch.setitem(registry.FAMILIES, "toy_families:TEXT", broken)
    task = run_tasks(load_recipe(here / written(here, "text", "toy_families")), Store(here / "root")).train
    with pytest.raises(UserError, match="a mean, and it must be the sum over all targets"):
        build(task.spec, task.execution, World(), Lengths.fixed(16), None)
