"""`reducible compare`: the laws that it reads, and the comparison that it prints."""

import json
from pathlib import Path

import pytest
from in_process import called, said
from overtaking_cases import EARLY, LATE, fitted

from reducible.tasks.fit.overtaking import compare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two fits of tables, and one of a table with two families."""
    for name, law, seed in (
        ("adamw-fit", EARLY, 1),
        ("muon-fit", LATE, 2),
        ("both/early", EARLY, 1),
        ("both/late", LATE, 2),
    ):
        (tmp_path / name).mkdir(parents=True)
        fitted(law, 0.001, seed).save(tmp_path / name / "fit.json")
    return tmp_path


def test_fits_of_several_tables_are_compared_under_their_folders_names(folder: Path) -> None:
    expected = compare({"adamw-fit": fitted(EARLY, 0.001, 1), "muon-fit": fitted(LATE, 0.001, 2)})
    told = said("compare", folder / "adamw-fit", folder / "muon-fit" / "fit.json")
    for one in (*expected.overtakings, *expected.multipliers):
        assert f"{one.sentence}." in told
    assert f"{expected.shared_E.sentence}." in told
    found = json.loads(said("compare", folder / "adamw-fit", folder / "muon-fit", "--json"))
    assert found == json.loads(json.dumps(expected.to_dict()))


def test_the_families_of_one_fit_are_compared(folder: Path) -> None:
    told = said("compare", folder / "both")
    assert "late overtakes early at" in told and "the compute of late counts" in told


@pytest.mark.parametrize(
    ("laws", "line"),
    [
        (["adamw-fit"], "has one law; give two or more, such as reducible compare"),
        (["adamw-fit", "adamw-fit"], "stands twice; give each law once"),
        (["adamw-fit", "nowhere"], "no fit of that name"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    folder: Path, laws: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = called("compare", *laws, "--root", folder / "root")
    assert result.exit_code == 2 and line in result.output and "Traceback" not in result.output
