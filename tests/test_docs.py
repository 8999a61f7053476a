"""What the pages promise in code is there: Python examples run, and the modules and files that they name exist."""

import importlib
import re
import textwrap
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md")), TOP / "benchmarks" / "README.md"]
FOLDERS = "benchmarks|data|docs|models|pipelines|recipes|tasks|tests"


def _examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_data_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("".join(f"the number {n}\tdie Zahl {n}\n" for n in range(2000)))
    packed, pairs = [text for text in _examples(TOP / "docs" / "data.md") if "import" in text]
    seen: dict[str, dict[str, object]] = {"packed": {}, "pairs": {}}
    exec(packed, seen["packed"])
    exec(pairs, seen["pairs"])
    assert {key: value.shape for key, value in seen["packed"]["batch"].items()} == {  # type: ignore[attr-defined]
        "inputs": (16, 256),
        "targets": (16, 256),
    }
    assert {"source", "source_lengths", "inputs", "targets"} == set(seen["pairs"]["batch"])  # type: ignore[call-overload]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(TOP).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for example in _examples(page):
        compile(textwrap.dedent(example), str(page), "exec")
        imports = re.findall(r"^(?:from|import) .*", example, re.MULTILINE)
        exec("\n".join(imports), {})
    for name in set(re.findall(r"\breducible\.(?:data|models|pipelines|tasks)(?:\.\w+)+", text)):
        _resolve(name)
    for path in set(re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w/-]+\.(?:py|md|yaml|html|css|png)\b", text)):
        assert (TOP / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(TOP).as_posix())
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", link):  # of the web
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(TOP).as_posix())
def test_a_python_file_named_without_its_folder_is_in_the_tree(page: Path) -> None:
    known = {path.name for folder in FOLDERS.split("|") for path in (TOP / folder).rglob("*.py")}
    for name in set(re.findall(r"(?<![\w./-])[a-z]\w*\.py\b", _prose(page))):
        assert name in known, name


def _resolve(name: str) -> object:
    """The module, or what a module holds under this name."""
    module, _, member = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), member)
