"""A family's address: what is refused says what to do; the code behind it is all that it imports from beside it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reducible.models.families.outside import blaming, code_files, code_of
from reducible.models.families.registry import FAMILIES, family

LINE = "from toy_families import TEXT as FAMILY\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from it, and what is registered, is forgotten afterwards."""
    monkeypatch.setattr("reducible.models.families.registry.FAMILIES", dict(FAMILIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def refused(name: str) -> str:
    with pytest.raises(ValueError, match="^model.family: ") as caught:
        family(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../evil:FAMILY", "a:b:c", ":FAMILY", "a:", ":", ".a:F", "a..b:F", "a/b.py:F", "a: F"]
)
def test_what_is_no_address(name: str) -> None:
    assert refused(name).endswith("must be an address such as my_package.my_module:FAMILY: module, colon, name")


def test_a_point_in_place_of_the_colon() -> None:
    assert refused("my.module.FAMILY").endswith("an address has a colon: my.module:FAMILY")


MODULES = {
    "raises": ("\nraise RuntimeError('no licence')\n", r"cannot be imported: RuntimeError: no licence \(.*line 2\)"),
    "leaves": ("import sys\nsys.exit('bye')\n", r"cannot be imported: SystemExit: bye \(.*leaves.py, line 2\)"),
    "unread": ("def f(:\n", r"cannot be imported: SyntaxError: .*unread.py, line 1"),
    "needs": ("import no_such_thing\n", "it needs no_such_thing, which is not installed here"),
    "other": ("from toy_families import TEXT\n", "other has no FAMILY; the module has TEXT"),
    "none": ("FAMILY = None\n", "none:FAMILY is of type NoneType, and must be a Family"),
    "text": ("FAMILY = 'x:FAMILY'\n", "text:FAMILY is of type str, and must be a Family"),
    "made": ("from toy_families import ToyText as FAMILY\n", "made:FAMILY is the class ToyText, and must be a Family"),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_may_do_wrong(name: str, folder: Path) -> None:
    code, said = MODULES[name]
    (folder / f"the_{name}.py").write_text(code)
    line = refused(f"the_{name}:FAMILY")
    assert re.search(said, line), line


def test_a_module_that_is_not_there(folder: Path) -> None:
    assert f"no nowhere in {folder} or on Python's path" in refused("nowhere.models:FAMILY")


def test_a_broken_entry_point_leaves_the_others_alone(folder: Path) -> None:
    (folder / "sound.py").write_text(LINE)
    for name, points in {
        "good": "sound-one = sound:FAMILY\nwith-extra = sound:FAMILY [more]",
        "bad": "sick = no_such_thing:FAMILY\nworse = nonsense with spaces\ntransformer = sound:FAMILY",
    }.items():
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[reducible.families]\n{points}\n")
    assert family("sound-one").reads == family("with-extra").reads == "text"
    assert family("transformer") is FAMILIES["transformer"]
    assert "no no_such_thing in" in refused("sick") and "(the entry point sick of" in refused("sick")
    assert "'nonsense with spaces' must be an address" in refused("worse")
    assert "sound-one" in refused("nine")


def test_code_is_all_that_a_module_imports_from_beside_it(folder: Path) -> None:
    (folder / "lone.py").write_text(LINE + "import torch, json, layers_of_mine\n")
    (folder / "layers_of_mine.py").write_text("from more_of_mine.inner import x\n")
    (folder / "more_of_mine").mkdir()
    (folder / "more_of_mine" / "inner.py").write_text("x = 1\n")
    (folder / "unused.py").write_text("")
    (folder / "json.py").write_text("")
    files = ["lone.py", "layers_of_mine.py", "more_of_mine/inner.py"]
    assert [name for name, _ in code_files("lone")] == files
    before = code_of("lone")
    (folder / "unused.py").write_text("changed = 1\n")
    assert code_of("lone") == before
    (folder / "more_of_mine" / "inner.py").write_text("x = 2\n")
    assert code_of("lone") != before


def test_an_error_of_a_family_from_outside_names_it_and_the_line(folder: Path) -> None:
    (folder / "fails.py").write_text(LINE + "def cost(config):\n    return {}['x']\n")
    found = family("fails:FAMILY")
    said = r"^model.family: fails:FAMILY: the cost failed: KeyError: 'x' \(.*line 3\)$"
    with pytest.raises(ValueError, match=said), blaming(found, "the cost"):
        sys.modules["fails"].cost(None)
    with pytest.raises(KeyError), blaming(FAMILIES["vae"], "the cost"):
        raise KeyError("a fault of this package keeps its traceback")
