"""docs/extending.md is true: its code is what the tests add, its files are there, and no change opens more of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import reducible
from reducible.data import schemes
from reducible.data.builtin import Builtin
from reducible.models.batches import BATCHES
from reducible.models.families.registry import FAMILIES
from reducible.pipelines.dataset.kinds import KINDS as SECTIONS
from reducible.pipelines.dataset.kinds import section_named
from reducible.tasks.dataset.kind import KINDS, kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.fit.laws.registry import FORMS, form_named
from reducible.tasks.train.optimizers.registry import OPTIMIZERS, optimizer_kind

TOP = Path(__file__).resolve().parents[1]
PACKAGE = Path(reducible.__file__).parent
TEXT = (TOP / "docs" / "extending.md").read_text()
SECTIONS_OF_PAGE = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
PLAYED = [*(TOP / "tests" / "cases").rglob("*toy*/*.py"), *(TOP / "tests" / "cases").glob("*.py")]
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for layer in ("data", "models", "tasks", "pipelines")
    for path in sorted((PACKAGE / layer).rglob("*.py"))
}
CHANGES = {
    "A model family": ["models/families/registry.py"],
    "An optimizer": ["tasks/train/optimizers/registry.py"],
    "A form of a law": ["tasks/fit/laws/registry.py"],
    "A kind of data": ["models/batches.py", "tasks/dataset/kind.py", "pipelines/dataset/kinds.py"],
    "A source of data": ["data/schemes.py"],
    "The name of a checkpoint": ["tasks/train/folders.py"],
}
"""The files of the package that a change opens, besides those that it writes."""
OTHERS = ("recurrent", "encoder_decoder", "seq2seq", "linear_gaussian", "ssm", "vae")
"""Files of families. Parts of the transformer's are used elsewhere: other people's weights are read as one."""


def strings(tree: ast.AST) -> Iterator[str]:
    """Constants that are no docstring."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def naming(module: str) -> list[str]:
    """The files that import a module, or name it in a string."""
    named = f"reducible.{module}"
    return [
        file
        for file, tree in SOURCES.items()
        if named in imported(tree) or any(text.partition(":")[0] == named for text in strings(tree))
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_the_code_of_the_page_is_that_of_what_the_tests_add(change: str) -> None:
    files = [TOP / file for file in re.findall(r"`([\w/]+\.py)`", SECTIONS_OF_PAGE[change])]
    played = [path.read_text() for path in (PLAYED if change != "The name of a checkpoint" else files)]
    examples = re.findall(r"^```python\n(.*?)^```", SECTIONS_OF_PAGE[change], re.DOTALL | re.MULTILINE)
    assert examples
    for example in examples:
        assert any(example in text for text in played), example


@pytest.mark.parametrize("change", CHANGES)
def test_the_files_that_a_change_opens_are_those_of_the_table(change: str) -> None:
    anchor = change.lower().replace(" ", "-")
    (row,) = re.findall(rf"^\| \[.*\]\(#{anchor}\) \|.*", TEXT, re.MULTILINE)
    files = re.findall(r"`([\w/]+\.py)`", row)
    assert files == CHANGES[change]
    for file in files:
        assert f"`{file}`" in SECTIONS_OF_PAGE[change]
    for file in re.findall(r"`((?:data|models|tasks|pipelines|tests)/[\w/.]*)`", SECTIONS_OF_PAGE[change]):
        assert (TOP / file).exists(), file


@pytest.mark.parametrize(
    ("module", "opened"),
    [
        *(
            (f"models.families.{name}", ["models/families/registry.py"])
            for name in ("recurrent", "seq2seq", "ssm", "vae")
        ),
        ("tasks.train.optimizers.adamw", ["tasks/train/optimizers/registry.py"]),
        *(
            (f"tasks.fit.laws.{name}", ["tasks/fit/laws/registry.py"])
            for name in ("tied", "compute", "overtraining", "farseer")
        ),
        # The law of repeated data is Chinchilla's where nothing is repeated.
        ("tasks.fit.laws.chinchilla", ["tasks/fit/laws/data_constrained.py", "tasks/fit/laws/registry.py"]),
        ("tasks.dataset.series_kind", ["tasks/dataset/kind.py"]),
        ("tasks.dataset.pairs_kind", ["tasks/dataset/kind.py"]),
        ("pipelines.dataset.series_data", ["pipelines/dataset/kinds.py"]),
        ("pipelines.dataset.pairs_data", ["pipelines/dataset/kinds.py"]),
        ("data.builtin", ["data/schemes.py"]),
        ("data.generated", ["data/schemes.py"]),
    ],
)
def test_what_is_there_already_is_named_by_its_line_alone(module: str, opened: list[str]) -> None:
    assert naming(module) == opened


def test_the_name_of_a_checkpoint_stands_once() -> None:
    assert [file for file, tree in SOURCES.items() if any("step-" in text for text in strings(tree))] == [
        "tasks/train/folders.py"
    ]


def test_the_registries_hold_what_the_page_says() -> None:
    for name in OPTIMIZERS:
        assert optimizer_kind(name).settings.model_fields["kind"].default == name
    assert FORMS["chinchilla"] is form_named("chinchilla")
    assert any(isinstance(row, Builtin) for row in schemes.SCHEMES) and schemes.SCHEMES[-1] is schemes.PATHS
    assert KINDS.keys() == BATCHES.keys() and {family.reads for family in FAMILIES.values()} <= BATCHES.keys()
    assert {kind_named(name).data for name in KINDS} == set(SECTIONS)
    for kind in SECTIONS:
        assert section_named(kind).model_fields["kind"]


@pytest.mark.parametrize("find", [optimizer_kind, form_named, kind_named])
def test_an_unknown_name_is_the_same_line_everywhere(find) -> None:
    with pytest.raises(
        (ValueError, UserError), match=r"^there is no [\w ]+ 'nothing'; nearest is '[\w-]+', all: [\w, -]+$"
    ):
        find("nothing")
