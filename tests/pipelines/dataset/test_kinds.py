"""A kind of data is one row in each layer: the rows agree with each other, and nothing outside them asks for a name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking_code import lines_that_ask, places_that_ask

from reducible.models.families.registry import FAMILIES
from reducible.pipelines.dataset import kinds as sections
from reducible.pipelines.evaluation import evaluation_of, evaluation_task
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.dataset.kind import KINDS, Kind, kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.workflow.task import description, finished

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


def asks_for_a_kind(tree: ast.AST) -> Iterator[int]:
    return lines_that_ask(tree, KINDS.keys(), CLASSES, keys=2)


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
    assert places_that_ask(("models", "tasks", "pipelines"), asks_for_a_kind, ROWS.__contains__) == []


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
