"""Which column is which, in which unit, and that none that matters is dropped without a word."""

import math
from pathlib import Path

import pandas
import pytest
from law_cases import QUICK, isoflop_design, table_of

from reducible.tasks.errors import UserError
from reducible.tasks.fit.admission import admit
from reducible.tasks.fit.column_names import meaning
from reducible.tasks.fit.files import fit_table
from reducible.tasks.fit.run_table import RunTable, TableOptions, read_runs
from reducible.tasks.fit.units import PF_DAY

ROW = {"N": 1e6, "D": 2e7, "C": 1.2e14, "loss": 3.5}


def read(folder: Path, rows: list[dict[str, object]], **options: object) -> RunTable:
    path = folder / "runs.csv"
    pandas.DataFrame(rows).to_csv(path, index=False)
    return read_runs(str(path), TableOptions(**options))  # type: ignore[arg-type]


def refusal(folder: Path, rows: list[dict[str, object]], **options: object) -> str:
    with pytest.raises(UserError) as raised:
        read(folder, rows, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (
            "N",
            "N n params n_params Parameters model_size num-params N_params params_N metrics.n_params #params",
        ),
        ("D", "D tokens n_tokens Training_Tokens tokens_D config.train_tokens"),
        ("C", "C flops FLOPs compute flops_C train_flops total_flops Training_FLOP"),
        (
            "loss",
            "loss Loss val_loss val/loss eval/loss final/val_loss metrics.val/loss validation.loss valLoss final_loss",
        ),
        ("name", "name Name run_name run_id tags.mlflow.runName"),
        ("status", "status State"),
        ("learning_rate", "lr learning_rate peak_lr params.lr"),
        ("N_without_embeddings", "N_without_embeddings non_embedding_params params_no_embed"),
        ("unique_tokens", "unique_tokens U"),
    ],
)
def test_well_known_names(role: str, names: str) -> None:
    for name in names.split():
        found = meaning(name)
        assert found is not None and found.role == role and found.unit is None and found.factor == 1, name


@pytest.mark.parametrize(
    "name", ["train_loss", "colour", "flops_per_token", "tokens_per_param", "warmup", "losshi_c4", ""]
)
def test_other_names_mean_nothing(name: str) -> None:
    assert meaning(name) is None


def test_names_that_say_their_unit(tmp_path: Path) -> None:
    row = {"params (M)": 1, "tokens_B": 0.02, "pf_days": 1.2e14 / PF_DAY, "val_bpb": 3.5 / math.log(2)}
    runs = read(tmp_path, [row])
    assert runs.table.iloc[0].to_dict() == pytest.approx(ROW)
    assert runs.notes == (
        "N is read from params (M), times 1e+06",
        "D is read from tokens_B, times 1e+09",
        "C is read from pf_days in PF-days",
        "loss is read from val_bpb in bits and given in nats",
    )


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"loss": 3.5 / math.log(2)}, {"unit": "bits"}),
        ({"loss": math.exp(3.5)}, {"unit": "perplexity"}),
        ({"C": 1.2e14 / PF_DAY}, {"compute_unit": "pf-days"}),
        ({"N": 1, "D": 0.02}, {"scales": {"N": 1e6, "D": 1e9}}),
    ],
)
def test_units_by_option(tmp_path: Path, change: dict[str, float], options: dict[str, object]) -> None:
    runs = read(tmp_path, [ROW | change], **options)
    assert runs.table.iloc[0].to_dict() == pytest.approx(ROW) and runs.notes


def test_columns_by_option(tmp_path: Path) -> None:
    row = {"size": 1e6, "D": 2e7, "C": 1.2e14, "c4": 3.5, "loss": 9.0, "D2": 5}
    runs = read(tmp_path, [row], columns={"N": "size", "loss": "c4"})
    assert runs.table.iloc[0].to_dict() == ROW
    assert runs.remarks == ("columns: N from size, loss from c4", "not used: loss, D2")
    assert "--column N=siez: " in refusal(tmp_path, [row], columns={"N": "siez"})
    assert "nearest is 'size'" in refusal(tmp_path, [row], columns={"N": "siez"})
    assert "there is no column of a fit 'size'" in refusal(tmp_path, [row], columns={"size": "N"})


def test_two_columns_of_one_meaning_are_asked_if_they_differ(tmp_path: Path) -> None:
    row = {"params": 1e6, "model_size": 2e6, "D": 2e7, "loss": 3.5}
    assert "N may be params or model_size; add --column N=params or another" in refusal(tmp_path, [row])
    assert read(tmp_path, [row | {"model_size": 1e6}]).table.N[0] == 1e6
    assert read(tmp_path, [row], columns={"N": "model_size"}).table.N[0] == 2e6
    # Beside val_loss, loss is often that of training.
    assert "loss may be loss or val_loss; add --column loss=loss" in refusal(tmp_path, [ROW | {"val_loss": 3.4}])
    assert read(tmp_path, [ROW | {"val_loss": 3.4}], columns={"loss": "val_loss"}).table.loss[0] == 3.4
    runs = read(tmp_path, [ROW | {"test_loss": 3.4}])
    assert runs.table.loss[0] == 3.5
    assert runs.remarks == ("loss is loss, not test_loss (--column loss=test_loss takes the other)",)
    # A column of words is no column of parameters, whatever its name.
    assert read(tmp_path, [{"param_count": "kaplan", "params_N": 1e6, "D": 2e7, "loss": 3.5}]).table.N[0] == 1e6


def test_words_for_finished(tmp_path: Path) -> None:
    words = ["FINISHED", "finished", "Completed", "success", "", "KILLED", "crashed", "RUNNING", "Failed"]
    rows = [ROW | {"N": 1e6 * (i + 1), "C": 1.2e14 * (i + 1), "State": word} for i, word in enumerate(words)]
    runs = admit(read(tmp_path, rows).table)
    assert [run.used for run in runs] == [True] * 5 + [False] * 4
    assert [run.reason for run in runs[5:]] == ["KILLED", "crashed", "RUNNING", "Failed"]


def test_an_empty_cell_leaves_the_run_out_by_name(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("name,N,D,loss\na,1e6,2e7,3.5\nb,2e6,2e7,\nc,3e6,2e7,NaN\nd,,2e7,3\ne,4e6,2e7,n/a\n")
    runs = admit(read_runs(str(path)).table)
    assert [(run.name, run.reason) for run in runs if not run.used] == [
        ("b", "loss is nan: the law needs a positive, finite loss"),
        ("c", "loss is nan: the law needs a positive, finite loss"),
        ("d", "N is nan: it must be a positive number"),
        ("e", "loss is nan: the law needs a positive, finite loss"),
    ]


def test_every_unused_column_is_named_once(tmp_path: Path) -> None:
    rows = [ROW | {"colour": word, "grad": 0.1, "hparams": "base"} for word in ("red", "blue")]
    runs = read(tmp_path, rows, ignore=("hparams",))
    assert runs.remarks == ("not used: colour (2 values), grad, hparams (--ignore)",)
    assert "there is no column 'hue'" in refusal(tmp_path, rows, ignore=("hue",))


@pytest.mark.parametrize("name", ["family", "Architecture", "dataset", "params.optimizer"])
def test_one_law_does_not_mix_families_without_a_word(tmp_path: Path, name: str) -> None:
    rows = [ROW | {name: "lstm"}, ROW | {name: "gru"}]
    assert f"{name} has 2 values (lstm and gru), and one law would mix them; add --family {name}" in refusal(
        tmp_path, rows
    )
    assert read(tmp_path, rows, ignore=(name,)).families == ()
    assert read(tmp_path, rows, family=(name,)).families == ("lstm", "gru")
    assert read(tmp_path, rows[:1]).families == ()  # one family needs no question


def test_a_family_may_be_several_columns_and_has_a_value_in_each_row(tmp_path: Path) -> None:
    rows = [ROW | {"family": "lstm", "data": 1}, ROW | {"family": "lstm", "data": 2}]
    assert read(tmp_path, rows, family=("family", "data")).families == ("lstm/1", "lstm/2")
    assert "row 3, column family: is empty" in refusal(tmp_path, [*rows[:1], ROW | {"data": 2}], family=("family",))


def test_which_parameters_count(tmp_path: Path) -> None:
    both = [ROW | {"params_no_embed": 8e5}]
    runs = read(tmp_path, both)
    assert runs.counts == "parameters"
    assert "N counts all parameters, not params_no_embed (--count without-embeddings takes those)" in runs.remarks
    runs = read(tmp_path, both, counts="parameters_without_embeddings")
    assert admit(runs.table, runs.counts)[0].N == 8e5
    alone = read(tmp_path, [{"non_embedding_params": 1e6, "D": 2e7, "loss": 3.5}])
    assert alone.counts == "parameters_without_embeddings" and alone.table.C[0] == 1.2e14
    assert any("without embeddings" in note for note in alone.notes)
    assert "lacks the column N_without_embeddings that --count wants" in refusal(
        tmp_path, [dict(ROW)], counts="parameters_without_embeddings"
    )


def test_learning_rates_are_used_under_their_short_name(tmp_path: Path) -> None:
    runs = read(tmp_path, [ROW | {"lr": 1e-3}, ROW | {"lr": 3e-3, "loss": 3.4}])
    assert [run.used for run in admit(runs.table)] == [False, True]


def test_runs_that_differ_in_unique_tokens_are_not_duplicates(tmp_path: Path) -> None:
    runs = read(tmp_path, [ROW | {"unique_tokens": 4e7}, ROW | {"unique_tokens": 8e7, "loss": 3.4}])
    assert [run.used for run in admit(runs.table)] == [True, True]


def test_repeated_data_is_refused_by_a_form_that_does_not_know_it(tmp_path: Path) -> None:
    table = table_of(*isoflop_design())
    table["unique_tokens"] = table.D / [4 if i < 3 else 1 for i in range(len(table))]
    table.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(UserError, match=r"3 runs of 35 repeat their data \(D is above unique_tokens\)"):
        fit_table(read_runs(str(tmp_path / "runs.csv")), tmp_path / "out", QUICK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"N": 1}, "C/(N D) is 6e+06, where training costs about 6: N is probably in millions (--scale N=1e6)"),
        ({"D": 0.02}, "D is probably in billions (--scale D=1e9)"),
        (
            {"N": 1, "D": 0.02},
            "N is probably in millions (--scale N=1e6) and D is probably in billions (--scale D=1e9)",
        ),
        ({"C": 1.2e14 / PF_DAY}, "C is probably in PF-days (--compute-unit pf-days)"),
        ({"C": 6e6}, "C is probably FLOPs per token"),
        ({"D": 20}, "D is probably tokens per parameter"),
        ({"N": 125, "D": 2.5, "C": 6 * 125e6 * 2.5e9 / PF_DAY}, "C is probably in PF-days"),
    ],
)
def test_units_that_cannot_be_are_asked(tmp_path: Path, change: dict[str, float], said: str) -> None:
    line = refusal(tmp_path, [ROW | change])
    assert said in line and "--unchecked takes the numbers as they are" in line
    read(tmp_path, [ROW | change], unchecked=True)


def test_one_row_in_another_unit_is_found(tmp_path: Path) -> None:
    line = refusal(tmp_path, [dict(ROW), ROW | {"N": 2.0, "C": 2.4e14}])
    assert "in 1 of 2 rows (the first is row 3)" in line and "N is probably in millions" in line


def test_units_are_asked_without_compute_too(tmp_path: Path) -> None:
    assert "N is probably in millions (--scale N=1e6)" in refusal(tmp_path, [{"N": 125, "D": 2.5e9, "loss": 3.0}])
    assert "probably in billions (--scale D=1e9)" in refusal(tmp_path, [{"N": 125, "D": 2.5, "loss": 3.0}])


def test_a_perplexity_is_above_1(tmp_path: Path) -> None:
    assert "0.9 is not a perplexity" in refusal(tmp_path, [ROW | {"loss": 0.9}], unit="perplexity")


GRID = [
    {"N": 1e6 * 2**i, "D": 2e7 * 2**j, "C": 1.2e14 * 2 ** (i + j), "loss": 4 - 0.3 * i - 0.2 * j}
    for i in range(3)
    for j in range(3)
]


@pytest.mark.parametrize("kind", ["sum", "mean", "median"])
@pytest.mark.parametrize("columns", [("N", "D", "C", "loss"), ("N", "D", "loss"), ("name", "N", "D", "C", "loss")])
def test_a_last_row_that_sums_up_the_others_is_no_run(tmp_path: Path, kind: str, columns: tuple[str, ...]) -> None:
    rows = [{key: row.get(key, "a") for key in columns} for row in GRID]
    read(tmp_path, rows)
    numbers = [key for key in columns if key != "name"]
    total = {key: getattr(pandas.Series([row[key] for row in rows], dtype=float), kind)() for key in numbers}
    line = refusal(tmp_path, [*rows, total | ({"name": "Total"} if "name" in columns else {})])
    assert line.endswith(f"row 11 is the {kind} of the rows above, and no run; delete it")


def test_a_replicate_of_a_row_is_no_sum_of_it(tmp_path: Path) -> None:
    rows = [ROW | {"loss": loss, "seed": seed} for seed, loss in enumerate((3.5, 3.5001, 3.4999, 3.5))]
    assert len(read(tmp_path, rows).table) == 4


def test_a_perplexity_in_a_column_of_loss_is_asked(tmp_path: Path) -> None:
    perplexities = [row | {"loss": math.exp(row["loss"])} for row in GRID]
    assert "--unit perplexity" in refusal(tmp_path, perplexities)
    assert read(tmp_path, perplexities, unit="perplexity").table.loss[0] == pytest.approx(4)
    assert read(tmp_path, perplexities, unit="nats").table.loss[0] == pytest.approx(math.exp(4))
    exploded = [*GRID, ROW | {"seed": 1, "loss": 90.0}]  # one run, which the law's own robustness bears
    assert len(read(tmp_path, exploded).table) == 10


def test_a_unit_in_the_name_and_in_the_cell_is_asked(tmp_path: Path) -> None:
    row = {"params (M)": "125M", "D": 2.5e9, "loss": 3.0}
    assert "row 2, column params (M): 125M says its unit" in refusal(tmp_path, [row])
    assert "says its unit" in refusal(tmp_path, [{"N": "125M", "D": 2.5e9, "loss": 3.0}], scales={"N": 1e6})
    assert read(tmp_path, [row], scales={"N": 1.0}).table.N[0] == 125e6
    assert read(tmp_path, [row | {"params (M)": 125}]).table.N[0] == 125e6


def test_one_row_in_another_unit_is_found_without_compute_too(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"N": 125e6 * i, "D": 2.5e9, "loss": 3.0} for i in range(1, 6)]
    line = refusal(tmp_path, [*rows, {"N": 750, "D": 2.5e9, "loss": 2.9}])
    assert "in 1 of 6 rows (the first is row 7): N is probably in millions" in line
    assert "D is probably in millions (--scale D=1e6)" in refusal(tmp_path, [{"N": 7e9, "D": 1.4e5, "loss": 3.0}])


def test_prefixes_of_flops_in_a_name(tmp_path: Path) -> None:
    for name, factor in (
        ("C (EFLOPs)", 1e18),
        ("compute_pflops", 1e15),
        ("train FLOPs (ZFLOP)", 1e21),
        ("C (FLOPs)", 1),
    ):
        assert read(tmp_path, [{"N": 1e6, "D": 2e7, "loss": 3.5, name: 1.2e14 / factor}]).table.C[0] == pytest.approx(
            1.2e14
        )


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [("diverged", ["True", "False", "True"], "diverged is True"), ("Finished", [0, 1, 0], "Finished is 0")],
)
def test_a_column_that_says_no_leaves_runs_out(tmp_path: Path, column: str, cells: list[object], reason: str) -> None:
    rows = [row | {column: cell} for row, cell in zip(GRID, cells, strict=False)]
    runs = admit(read(tmp_path, rows).table)
    assert [(run.used, run.reason) for run in runs] == [(False, reason), (True, None), (False, reason)]


def test_points_along_one_training_are_said(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [row | {"run": f"r{row['N']:g}", "_step": row["D"] / 1e4} for row in GRID]
    assert any(
        "r1e+06, r2e+06 and r4e+06 have rows at several values of _step" in n for n in read(tmp_path, rows).notes
    )
    apart: list[dict[str, object]] = [row | {"run": f"r{i}", "_step": 5} for i, row in enumerate(GRID)]
    assert not any("_step" in note for note in read(tmp_path, apart).notes)
