"""A source of data is one file and one row: with these every kind of data is read from it, and a job leaves it there.

Without them its locations are refused in one line, wherever they are written; no odd string becomes a path unsaid.
"""

import os
import string
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_process import make

from reducible.data.errors import DataError
from reducible.pipelines.cluster.upload import named_files
from reducible.pipelines.plan.plan import print_plan
from reducible.pipelines.recipe.load import finetuning_recipe, load_recipe
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from tests.cases import toy_scheme


def written(folder: Path, data: dict[str, Any], **more: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": data, **more}))
    return path


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"tokenizer": {"kind": "bytes"}, "sequence": 16}, "transformer"),
    "pairs": ({"tokenizer": {"kind": "words"}, "sequence": 8}, "seq2seq"),
    "series": ({"sequence": 8}, "linear-gaussian"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_of_ones_own_is_planned_and_read(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, family = KINDS[kind]
    path = written(tmp_path, {"kind": kind, "source": "toy://200", **data}, model={"family": family})
    with toy_scheme.registered():
        recipe, store = load_recipe(path, ["train.tokens=1k", "train.batch=64"]), Store(tmp_path / "root")
        print_plan(recipe, str(store.root), (), False)
        assert "dataset" in capsys.readouterr().out
        task = recipe.data.dataset_task(recipe.name, store)
        assert list(named_files(["recipe.yaml"], Path("/srv/root"), tmp_path)) == [("files/recipe.yaml", path)]
    make([task], store)  # the tasks know the files alone, so that workers need no more
    content = open_dataset(store.artifact("dataset", task.identity)).content
    assert content["source"] == "toy://200"
    counted = {"text": "documents", "pairs": "pairs", "series": "steps"}[kind]
    rows = sum(counts[counted] for counts in content["splits"].values())
    assert rows == {"text": 200, "pairs": 200, "series": 199}[kind]
    if kind == "series":
        assert content["columns"] == ["value"]


FIELDS = [
    ("text", "source"),
    ("text", "validation"),
    ("text", "tokenizer.path"),
    ("pairs", "source"),
    ("pairs", "test"),
    ("pairs", "source_tokenizer.path"),
    ("series", "source"),
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
@pytest.mark.parametrize(
    "location", ["s3://b/k", "hf://me/it", "biultin:stdlib", "C:\\data\\a.txt", "generated:markov"]
)
def test_an_unknown_scheme_is_one_line_in_every_field(tmp_path: Path, kind: str, field: str, location: str) -> None:
    data: dict[str, Any] = {"kind": kind, "source": "a.txt"}
    section = data
    for key in field.split(".")[:-1]:
        section = section.setdefault(key, {"kind": "file"})
    section[field.split(".")[-1]] = location
    sound = written(tmp_path / "..", {"kind": kind, "source": "a.txt"})
    override = [f"data.{field}={location}"] + [f"data.{field[:-5]}.kind=file"] * field.endswith(".path")
    for path, overrides in ((written(tmp_path, data), []), (sound, override)):
        with pytest.raises(UserError) as caught:
            load_recipe(path, overrides)
        line = str(caught.value)
        assert f"data.{field}: {location!r} is not allowed; it must be" in line and "\n" not in line
        if location.startswith(("s3", "hf", "biultin")) and not field.endswith(".path"):
            assert f"{location.partition(':')[0]}:" in line.partition("must be")[2] and "known: builtin:" in line
        if location.startswith("biultin") and not field.endswith(".path"):
            assert line.endswith("did you mean builtin:?")


def test_an_unknown_scheme_is_one_line_on_the_command_line_and_in_a_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.source: 's3://b/k' is not allowed; .*s3:// is not"):
        finetuning_recipe("a-run", "text", "s3://b/k", None, None, None, [])
    for arguments in (["data.source=s3://b/k"], ["finetune", "a-run", "--data", "s3://b/k"], ["--data=s3://b/k"]):
        with pytest.raises(UserError, match=r"^data\.source: 's3://b/k' is not allowed; .*s3:// is not"):
            list(named_files(arguments, Path("/srv/root"), tmp_path))


def test_files_whose_names_have_a_colon_are_files(tmp_path: Path) -> None:
    (tmp_path / "draft:one.txt").write_text("a")
    (tmp_path / "s3:").mkdir()
    for location in ("draft:one.txt", "draft:*.txt", "s3:", "s3://"):
        source = load_recipe(written(tmp_path, {"source": location})).data.source
        assert source == str((tmp_path / location).absolute())
    # One that is not there can be meant with a folder before it.
    assert load_recipe(written(tmp_path, {"source": "./draft:two.txt"})).data.source == str(tmp_path / "draft:two.txt")
    with pytest.raises(UserError, match="draft: is not"):
        load_recipe(written(tmp_path, {"source": "draft:two.txt"}))


PIECES = ["s3", "hf", "builtin", "toy", "C", "~", "nobody", ":", "://", "/", "\\", "*", "**", "[", "]", ".", " ", "\n"]
ODD = st.one_of(
    st.text(max_size=40),
    st.text(string.printable, max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=7).map("".join),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(ODD)
@example("~nobody-of-that-name/x")
@example("a\0b:c")
@example("s3://" + "k" * 5000)
@example(" s3://b")
def test_no_odd_string_becomes_a_path_unsaid(tmp_path_factory: pytest.TempPathFactory, location: str) -> None:
    """What urllib takes for an address is refused by name, or a scheme's own; everything else is a path as it was."""
    folder = tmp_path_factory.getbasetemp() / "odd"
    folder.mkdir(exist_ok=True)
    try:
        text = yaml.safe_dump({"data": {"source": location}}, allow_unicode=True)
        if yaml.safe_load(text)["data"]["source"] != location:
            return  # not all of Unicode survives YAML
    except (yaml.YAMLError, UnicodeError):
        return
    (folder / "odd.yaml").write_text(text)
    try:
        source = load_recipe(folder / "odd.yaml").data.source
    except UserError as error:
        assert "data.source" in str(error) and "is not allowed; it must be" in str(error)
        assert "\n" not in str(error)
        return
    if not isinstance(source, str) or not source:
        return
    try:
        address = urlsplit(location).scheme
    except ValueError:
        address = location.partition(":")[0]
    assert not address or location.startswith("builtin:"), f"{location!r} became {source!r}"
    if source != location:
        assert Path(source) == folder.absolute() / os.path.expanduser(location)


def test_an_unknown_scheme_is_refused_from_python_too(tmp_path: Path) -> None:
    from reducible.data import pair_files, sources

    for listed in (
        lambda: sources.listing(sources.Source("s3://b/k")),
        lambda: pair_files.listing(pair_files.PairSource(("s3://b/k",))),
        lambda: sources.files_of("s3://b/k", "series"),
    ):
        with pytest.raises(DataError, match=r"'s3://b/k' is not allowed; .*\(s3:// is not\)"):
            listed()
