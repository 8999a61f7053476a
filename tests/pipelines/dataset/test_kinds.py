"""A kind of data is one row in each layer: the rows agree with each other, and nothing outside them asks for a name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import reducible
from reducible.models.families.registry import FAMILIES
from reducible.pipelines.dataset import kinds as sections
from reducible.pipelines.evaluation import evaluation_of, evaluation_task
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.dataset.kind import KINDS, Kind, kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.workflow.task import description, finished

PACKAGE = Path(reducible.__file__).parent
ROWS = {
    "models/batches.py",
    "models/families/registry.py",
    *(f"tasks/dataset/{name}.py" for name in ("kind", "text_kind", "sentences_kind", "pairs_kind", "series_kind")),
    *(f"pipelines/dataset/{name}.py" for name in ("kinds", "text_data", "pairs_data", "series_data")),
}
CLASSES = {"DataSection", "TextData", "PairData", "SeriesData", "TokenisedDataset", "PairDataset", "SeriesDataset"}
SHORTEST = {
    "text": "{source: builtin:stdlib}",
    "pairs": "{kind: pairs, source: builtin:docstrings}",
    "series": "{kind: series, source: builtin:nile}",
}


def constants(node: ast.AST) -> set[str]:
    """Strings that a comparison's side is, or is made of."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def asks_for_a_kind(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a kind's name, look it up in a table of their own, or ask which section or dataset it is."""
    for node in ast.walk(tree):
        asks = False
        if isinstance(node, ast.Compare):
            asks = any(constants(side) & KINDS.keys() for side in (node.left, *node.comparators))
        elif isinstance(node, ast.MatchValue):
            asks = bool(constants(node.value) & KINDS.keys())
        elif isinstance(node, ast.Dict):
            keys = {name for key in node.keys if key is not None for name in constants(key)}
            asks = len(keys & KINDS.keys()) > 1
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asks = bool({name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & CLASSES)
        if asks:
            yield node.lineno


def test_what_asks_for_a_kind_is_found() -> None:
    lines = [
        "a = reads == 'text'",
        "b = kind in ('pairs', 'series')",
        "c = {'text': 1, 'pairs': 2}[reads]",
        "d = isinstance(data, PairData)",
        "e = kind == 'lora' or {'series': 1}['series']",
    ]
    assert sorted(asks_for_a_kind(ast.parse("\n".join(lines)))) == [1, 2, 3, 4]


def test_nothing_outside_the_rows_asks_for_a_kind() -> None:
    found = []
    for layer in ("models", "tasks", "pipelines"):
        for path in sorted((PACKAGE / layer).rglob("*.py")):
            place = path.relative_to(PACKAGE).as_posix()
            if place not in ROWS:
                found += [f"{place}:{line}" for line in asks_for_a_kind(ast.parse(path.read_text()))]
    assert found == []


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_whole(name: str) -> None:
    row = kind_named(name)
    assert isinstance(row, Kind) and row.name == name
    assert row.unit and row.test_split and issubclass(row.settings, EvaluateSpec)
    assert row.data in sections.KINDS and kind_named(row.data).unit == row.unit
    assert set(row.settings.WHOLE) <= set(row.settings.model_fields)


def test_an_unknown_kind_is_one_line() -> None:
    with pytest.raises(
        ValueError, match="no kind of data 'images'; nearest is .*, all: text, sentences, pairs, series"
    ):
        kind_named("images")


@pytest.mark.parametrize("kind", sections.KINDS)
def test_a_recipe_calls_a_target_unit_what_its_notes_call_it(tmp_path: Path, kind: str) -> None:
    """A byte tokenizer's units are tokens too: the separator is one of them, and no byte."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {SHORTEST[kind]}\n")
    overrides = ["data.tokenizer.kind=bytes"] if kind != "series" else []
    section = load_recipe(path, overrides).data
    assert section.kind == kind and section.unit == kind_named(kind).unit
    assert section.unit == ("step" if kind == "series" else "token")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_of_another_kind_is_refused_and_no_part_of_an_evaluation(tmp_path: Path, family: str) -> None:
    row = kind_named(FAMILIES[family].reads)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {SHORTEST[row.data]}\n")
    spec = evaluation_of(load_recipe(path), FAMILIES[family])
    task = evaluation_task(finished("train", "a" * 64, "m"), finished("dataset", "b" * 64, "d"), "name", {}, spec)
    others = {key for name in KINDS for key in kind_named(name).settings.model_fields} - set(row.settings.model_fields)
    assert others and not others & description(task)["spec"].keys()
    for key in others:
        recipe = load_recipe(path, [f"evaluate.{key}=1"])
        with pytest.raises(UserError, match=f"evaluate.{key}: unknown key; (did you mean|allowed here: split, units)"):
            evaluation_of(recipe, FAMILIES[family])
    with pytest.raises(UserError, match="evaluate.untis: unknown key; did you mean units"):
        evaluation_of(load_recipe(path, ["evaluate.untis=1"]), FAMILIES[family])
