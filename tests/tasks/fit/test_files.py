"""`reducible fit TABLE`: the files it leaves, and one clear line for every mistake in the table."""

from pathlib import Path

import pandas
import pytest
from law_cases import QUICK, isoflop_design, table_of

from reducible.pipelines.fit import folder_beside
from reducible.tasks.errors import UserError
from reducible.tasks.fit.files import family_folder, fit_families, fit_table
from reducible.tasks.fit.overtaking import Comparison
from reducible.tasks.fit.result import Fit
from reducible.tasks.fit.run_table import TableOptions, read_runs


def write(folder: Path, text: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(text)
    return path


def read(path: Path) -> pandas.DataFrame:
    return read_runs(str(path)).table


def test_leaves_fit_runs_and_summary(tmp_path: Path) -> None:
    table = table_of(*isoflop_design(), noise=0.003)
    table["name"] = [f"cell {i}" for i in range(35)]
    table["status"] = ["finished"] * 34 + ["diverged"]
    table.to_csv(tmp_path / "runs.csv", index=False)
    fit = fit_table(read_runs(str(tmp_path / "runs.csv")), tmp_path / "out", QUICK)
    assert Fit.load(tmp_path / "out/fit.json").to_dict() == fit.to_dict()
    left = pandas.read_csv(tmp_path / "out/runs.csv")
    assert list(left.used) == [True] * 34 + [False] and left.reason.iloc[34] == "diverged"
    assert "excluded cell 34: diverged" in (tmp_path / "out/summary.txt").read_text()


def test_C_is_taken_as_6ND_and_said(tmp_path: Path) -> None:
    table_of(*isoflop_design()).drop(columns="C").to_csv(tmp_path / "runs.csv", index=False)
    fit = fit_table(read_runs(str(tmp_path / "runs.csv")), tmp_path, QUICK)
    assert pytest.approx(6 * fit.runs[0].N * fit.runs[0].D) == fit.runs[0].C
    assert any("taken as 6ND" in note for note in fit.notes)


def test_spaces_and_extra_columns_do_no_harm(tmp_path: Path) -> None:
    table = read(write(tmp_path, "N, D , C,loss,colour\n1e6, 2e7,1.2e14,3.5,red\n"))
    assert list(table.columns) == ["N", "D", "C", "loss"] and table.D[0] == 2e7


def test_a_run_that_did_not_finish_needs_no_loss(tmp_path: Path) -> None:
    table = read(write(tmp_path, "N,D,C,loss,status\n1e6,2e7,1.2e14,,diverged\n"))
    assert table.loss.isna()[0]
    table = read(write(tmp_path, "N,D,C,loss,status\n1e6,2e7,1.2e14,0,diverged\n"))
    assert table.loss[0] == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("N,D,C\n1,2,3\n", "lacks the column loss; it needs N, D, loss and has N, D, C"),
        ("N,D,C,loss\n", "has no rows"),
        ("", "cannot be read as CSV"),
        (
            "N,D,C,loss\n1e6,2e7,1e14,3\n1e6,many,1e14,3\n",
            "row 3, column D: 'many' is not a number; write it like 1.5e9",
        ),
        ("N,D,C,loss\n-1e6,2e7,1e14,3\n", "row 2, column N: -1e6 must be a positive number"),
        ("N,D,C,loss\n1e6,2e7,0,3\n", "row 2, column C: 0 must be a positive number"),
        ("N,D,C,loss\n1e6,2e7,1e14,-3\n", "row 2, column loss: -3 must be positive, in nats per target unit"),
        ("N,D,C,loss,seed\n1e6,2e7,1e14,3,1.5\n", "row 2, column seed: 1.5 is not a whole number"),
        ("N,D,C,loss,seed\n1e6,2e7,1e14,3,nan\n", "row 2, column seed: nan is not a whole number"),
        ("N,D,C,loss,seed\n1e6,2e7,1e14,3,inf\n", "row 2, column seed: inf is not a whole number"),
        ("N,D,C,loss,budget\n1e6,2e7,1e14,3,x\n", "row 2, column budget: 'x' is not a number"),
    ],
)
def test_mistakes_are_named_with_row_and_column(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        read(write(tmp_path, text))
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert str(tmp_path / "runs.csv") in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.csv does not exist: give a table of runs with the columns N, D, C, loss"):
        read(tmp_path / "none.csv")


def test_many_exclusions_are_one_line_and_a_file(tmp_path: Path) -> None:
    table = table_of(*isoflop_design(), noise=0.003)
    lost = pandas.concat([table] * 40, ignore_index=True).assign(status="KILLED")
    pandas.concat([table.assign(status="FINISHED"), lost]).to_csv(tmp_path / "runs.csv", index=False)
    fit_table(read_runs(str(tmp_path / "runs.csv")), tmp_path / "out", QUICK)
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()
    assert lines[0] == "35 runs, 1400 excluded; C from 1e+17 to 1e+21 FLOPs"
    assert [line for line in lines[1:] if "excluded" in line] == [
        "excluded: 1,400 runs; runs.csv beside fit.json names each with its reason",
    ]
    assert (pandas.read_csv(tmp_path / "out/runs.csv").reason == "KILLED").sum() == 1400


def test_a_law_for_each_family_and_their_comparison(tmp_path: Path) -> None:
    first, second = (table_of(*isoflop_design(4, 5), noise=0.003, seed=seed) for seed in (1, 2))
    second["loss"] *= 1.1
    lost = first[:1].assign(loss=float("nan"))
    families = {"early": first, "late/wide": second, "none": lost}
    pandas.concat([t.assign(arch=name) for name, t in families.items()]).to_csv(tmp_path / "runs.csv", index=False)
    runs = read_runs(str(tmp_path / "runs.csv"), TableOptions(family=("arch",)))
    fits, comparison, refused = fit_families(runs, tmp_path / "out", QUICK)
    assert list(fits) == ["early", "late/wide"] and list(refused) == ["none"]
    for name, fit in fits.items():
        assert Fit.load(family_folder(tmp_path / "out", name) / "fit.json").to_dict() == fit.to_dict()
        assert len(fit.used) == 20
    first.to_csv(tmp_path / "alone.csv", index=False)
    law = fit_table(read_runs(str(tmp_path / "alone.csv")), tmp_path / "alone", QUICK).law
    assert law == fits["early"].law
    assert Comparison.load(tmp_path / "out/comparison.json").to_dict() == comparison.to_dict()
    text = (tmp_path / "out/summary.txt").read_text()
    assert comparison.overtakings[0].sentence in text and "no law for none: none of the 1 runs can enter" in text


def test_two_families_never_share_a_folder(tmp_path: Path) -> None:
    names = [
        "a/b",
        "a b",
        "a-b",
        "a_b",
        "a:b",
        ".",
        "..",
        "/",
        "-",
        "\u00e4",
        "comparison.json",
        "figures",
        "a.b",
        "a.b.",
    ]
    folders = [family_folder(tmp_path, name) for name in names]
    assert len(set(folders)) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path}
    assert not {folder.name for folder in folders} & {"comparison.json", "summary.txt", "report.html", "figures"}
    assert family_folder(tmp_path, "a-b") == tmp_path / "a-b"


def test_the_folder_isfolder_beside_a_file_and_here_for_a_uri(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    assert folder_beside(str(tmp_path / "mlruns"), None) == tmp_path / "mlruns-fit"
    assert folder_beside(str(tmp_path / "mlruns"), "a/b") == tmp_path / "a-b-fit"
    assert folder_beside("sqlite:///x.db", None) == Path("x-fit")
    assert folder_beside("http://host:5000", "ladder") == Path("ladder-fit")
