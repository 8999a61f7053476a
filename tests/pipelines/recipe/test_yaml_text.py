"""A recipe's YAML means what its author sees: PyYAML's reading without YAML 1.1's surprises, and no key is lost."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reducible.pipelines.recipe import yaml_text
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.errors import UserError

KEYS = st.text("abcxyz", min_size=1, max_size=3).filter(lambda key: key != "y")  # YAML 1.1 reads y as true
CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(CONTENT, st.booleans())
def test_what_is_written_once_is_read_as_pyyaml_reads_it(content: Any, flow: bool) -> None:
    text = yaml.safe_dump(content, default_flow_style=flow)
    assert yaml_text.load(text) == yaml.safe_load(text) == content


def sections(content: Any) -> list[dict[str, Any]]:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [
        *([content] if isinstance(content, dict) and content else []),
        *(s for item in inner for s in sections(item)),
    ]


@given(st.dictionaries(KEYS, CONTENT, min_size=1), st.data())
def test_a_key_that_stands_twice_is_named_at_any_depth(content: dict[str, Any], data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sections(content)))
    twice = data.draw(st.sampled_from(sorted(section)))
    section["again"] = section[twice]
    text = yaml.safe_dump(content, sort_keys=False).replace("again:", f"{twice}:")
    with pytest.raises(yaml_text.WrongKey, match=f"the key {twice} stands twice"):
        yaml_text.load(text)


def test_keys_that_a_merge_brings_may_be_given_again() -> None:
    text = """
a: &a {x: 1, z: 2}
b: &b {<<: *a, x: 3}
c: {<<: *b, z: 4}
d: {<<: [*a, *b], x: 5}
e: {<<: *b}
"""
    assert yaml_text.load(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"data: {source: a}\ntrain: {}\ntrain: {tokens: 5M}\n", "recipe.yaml, line 3: the key train stands twice"),
        (b"true: 2\n", "recipe.yaml, line 1: true is not text; write keys as words, or in quotes"),
        (b"on: 2\ndata: {source: a}\n", "recipe.yaml: on: unknown key; allowed here: name, data"),
        (b"data: {source: a, 1.5: b}\n", "recipe.yaml, line 1: 1.5 is not text"),
        (b"? [a, b]\n: 2\n", "recipe.yaml, line 1: a key is not text"),
        (b"data: " + b"[" * 3000, "recipe.yaml: is not YAML (lists or sections are nested too deeply)"),
        (b"data: {source: a\0b}\n", "recipe.yaml: is not YAML (unacceptable character #x0000"),
        ("name: caf\u00e9".encode("latin-1"), "recipe.yaml: is not UTF-8 text (byte 9)"),
        (b'base: "a\\0b"\n', "recipe.yaml: base: 'a\\x00b' must be the path of another recipe"),
        (b"base: s3://bucket/recipe.yaml\n", "base: 's3://bucket/recipe.yaml' must be the path of another recipe"),
        (b"base: ''\n", "recipe.yaml: base: '' must be the path of another recipe"),
        (b"base: .\n", "cannot be read as a recipe (is a directory)"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(UserError) as raised:
        load_recipe(tmp_path / "recipe.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_base_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base.yaml").write_text("data: {source: builtin:stdlib}\ntrain: {seed: 7}\n")
    (tmp_path / "over.yaml").write_text("base: ~/base.yaml\n")
    assert load_recipe(tmp_path / "over.yaml").train.seed == 7


def test_a_value_of_the_command_line_has_no_key_twice(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {source: builtin:stdlib}\n")
    with pytest.raises(UserError, match="the key seed stands twice"):
        load_recipe(tmp_path / "recipe.yaml", ["train={seed: 1, seed: 2}"])


SURPRISES = """
20:30 190:20:30.15 on On off yes no NO 012 08 0x1F 0b11 1_000 1_000.5 2026-11-28 = 1e13 1.0e13
"""


@pytest.mark.parametrize("text", SURPRISES.split())
def test_what_only_yaml_1_1_takes_for_something_else_is_text(text: str) -> None:
    assert yaml_text.load(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("17", 17), ("-0", 0), ("1.5", 1.5), (".5e-3", 5e-4), ("true", True), ("False", False), ("null", None)],
)
def test_numbers_booleans_and_null_are_read(text: str, value: Any) -> None:
    assert yaml_text.load(text) == value and type(yaml_text.load(text)) is type(value)


@pytest.mark.parametrize(
    ("override", "value"), [("012", 12), ("1_000", 1000), ("1_5.5k", 15500), ("1e4", 10000), ("32k", 32000)]
)
def test_a_field_reads_the_number_that_its_author_sees(tmp_path: Path, override: str, value: int) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data: {{source: a}}\ntrain: {{tokens: {override}}}\n")
    assert load_recipe(tmp_path / "recipe.yaml").train.tokens == value
    assert load_recipe(tmp_path / "recipe.yaml", [f"train.batch={override}"]).train.batch == value


@pytest.mark.parametrize(
    "field",
    [
        "train.tokens: 20:30",
        "train.tokens: yes",
        "train.seed: on",
        "train.schedule.warmup: 1:30",
        "name: 2026",
        "train.tokens: 1e19",
    ],
)
def test_a_field_refuses_what_is_no_number_to_its_author(tmp_path: Path, field: str) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {source: a}\n")
    name, _, value = field.partition(": ")
    with pytest.raises(UserError, match=f"^.*recipe.yaml: {name}: '?{value}'? is not allowed; it must be "):
        load_recipe(tmp_path / "recipe.yaml", [f"{name}={value}"])


def test_a_flag_may_say_yes_and_a_name_may_say_no(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: no\ndata: {source: on, column: off, mask_documents: yes}\ncompute: {compile: no}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    data: Any = recipe.data
    assert (recipe.name, Path(data.source).name, data.column) == ("no", "on", "off")
    assert (data.mask_documents, recipe.compute.compile) == (True, False)


def test_a_pipe_is_no_recipe_and_no_base(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match=r"pipe.yaml: cannot be read as a recipe \(not a regular file\)"):
        load_recipe(tmp_path / "pipe.yaml")
    (tmp_path / "recipe.yaml").write_text("base: pipe.yaml\n")
    with pytest.raises(UserError, match=r"pipe.yaml: cannot be read as a recipe \(not a regular file\)"):
        load_recipe(tmp_path / "recipe.yaml")
