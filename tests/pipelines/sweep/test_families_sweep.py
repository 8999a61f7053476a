"""A sweep of several families: the same data, budgets and ledger for all, and each family's own model and ladder."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from reducible.pipelines.cli import main
from reducible.pipelines.plan.plan import print_plan
from reducible.pipelines.predict import Asked, print_prediction
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.repeated_data import repeated_units, warning_of_repeats
from reducible.pipelines.sweep.cells import SweepTasks, after_the_cells, sweep_tasks
from reducible.pipelines.sweep.sweep import compare_task, fit_task
from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit_task import table_of
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.store import Store, write_manifest
from reducible.tasks.workflow.task import Task, in_order

TEXT = {"generated": {"documents": 50}, "tokenizer": {"kind": "bytes"}, "sequence": 64}
PAIRS = {"kind": "pairs", "generated": {"kind": "reverse", "examples": 60, "length": 8, "shortest": 3}, "sequence": 16}
TRANSFORMER: dict[str, Any] = {"family": "transformer", "widths": [16, 32]}
LSTM: dict[str, Any] = {"name": "lstm", "family": "recurrent", "cell": "lstm", "widths": [8, 16, 24]}
GRU: dict[str, Any] = {"name": "gru", "family": "recurrent", "cell": "gru", "depth": 1, "sizes": ["5k"]}


def recipe(*families: dict[str, Any], sweep: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    design = {"budgets": [1e10, 4e10], "families": list(families), **(sweep or {})}
    return Recipe.model_validate({"name": "several", "data": TEXT, "sweep": design, **sections})


def tasks(root: Path, *families: dict[str, Any], **sections: Any) -> SweepTasks:
    return sweep_tasks(recipe(*families, **sections), Store(root))


def spec_of(task: Task) -> Any:
    return task.spec


def test_each_family_has_its_own_model_and_ladder_and_all_the_same_budgets(tmp_path: Path) -> None:
    made = tasks(tmp_path, TRANSFORMER, LSTM, GRU)
    assert [family.name for family in made.families] == ["transformer", "lstm", "gru"]
    transformer, lstm, gru = made.families
    assert [cell.plan.width for cell in transformer.cells] == [16, 32] * 2
    assert [cell.plan.width for cell in lstm.cells] == [8, 16, 24] * 2
    assert [spec_of(cell.train).family for cell in gru.cells] == ["recurrent"] * 2
    assert [spec_of(family.cells[0].train).model["cell"] for family in (lstm, gru)] == ["lstm", "gru"]
    for cell in made.cells:
        assert cell.plan.budget is not None
        assert cell.plan.flops == pytest.approx(cell.plan.budget, rel=0.05)
        assert cell.train.inputs["data"] is made.dataset
        assert cell.plan.label.startswith(f"{cell.train.tags['family']} C=") and cell.train.title == cell.plan.label
    colours = {cell.train.tags["family"]: cell.train.tags["mlflow.runColor"] for cell in made.cells}
    assert len(set(colours.values())) == 3


def test_a_cell_is_the_one_that_a_sweep_of_its_family_alone_trains(tmp_path: Path) -> None:
    several = tasks(tmp_path, TRANSFORMER, LSTM)
    design = {"budgets": [1e10, 4e10], "widths": [8, 16, 24]}
    alone = Recipe.model_validate(
        {"data": TEXT, "model": {"family": "recurrent", "cell": "lstm"}, "sweep": design, "name": "alone"}
    )
    assert [cell.train.identity for cell in several.families[1].cells] == [
        cell.train.identity for cell in sweep_tasks(alone, Store(tmp_path)).cells
    ]


def test_another_family_changes_none_that_was_there(tmp_path: Path) -> None:
    before, after = tasks(tmp_path, TRANSFORMER, LSTM), tasks(tmp_path, GRU, TRANSFORMER, LSTM)
    assert {cell.train.identity for cell in before.cells} < {cell.train.identity for cell in after.cells}


def test_every_family_can_be_tuned_for_itself(tmp_path: Path) -> None:
    tuned = {**LSTM, "optimizer": {"learning_rate": 0.02, "weight_decay": 0.0}}
    made = tasks(tmp_path, TRANSFORMER, tuned, train={"optimizer": {"learning_rate": 0.006, "clip": 0.5}})
    transformer, lstm = (spec_of(family.cells[0].train).optimizer for family in made.families)
    assert (transformer.learning_rate, transformer.weight_decay, transformer.clip) == (0.006, 0.1, 0.5)
    assert (lstm.learning_rate, lstm.weight_decay, lstm.clip) == (0.02, 0.0, 0.5)


def test_a_search_within_each_cell_serves_every_family(tmp_path: Path) -> None:
    search = {"samples": 3, "low": 1e-3, "high": 1e-1}
    made = tasks(tmp_path, TRANSFORMER, LSTM, sweep={"learning_rate": search})
    searches = {cell.train.inputs["search"].identity for cell in made.cells}
    assert len(searches) == len(made.cells) == 10
    assert all(spec_of(cell.train).optimizer.learning_rate is None for cell in made.cells)


def test_trunks_are_each_family_s_own(tmp_path: Path) -> None:
    design = {"budgets": [], "tokens": [6_400, 12_800], "widths": [16], "trunk": True}
    lstm = {"name": "lstm", "family": "recurrent"}
    made = tasks(tmp_path, {"family": "transformer"}, lstm, sweep=design, train={"batch": 640})
    assert len(made.cells) == 4
    segments = {task.identity for task in in_order([c.train for c in made.cells]) if task.tags.get("role") == "trunk"}
    assert len(segments) == 4


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ([TRANSFORMER, {**TRANSFORMER, "depth": 1}], "families: 2 are called transformer; give each a name"),
        ([TRANSFORMER, {"family": "recurrent"}], "families: give one of widths and sizes for recurrent"),
        ([{**TRANSFORMER, "sizes": ["5k"]}], "families: give one of widths and sizes for transformer"),
        ([{**TRANSFORMER, "widths": [[8], [16], [24]]}], "widths is one list for all budgets, or one list for each"),
        ([{**TRANSFORMER, "name": "a/b"}], "families"),
    ],
)
def test_a_mistake_in_the_families_is_said_when_the_recipe_is_read(families: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(*families)


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ([TRANSFORMER, {**LSTM, "cel": "gru"}], "sweep.families, lstm: model.cel: unknown key; did you mean cell?"),
        ([TRANSFORMER, {**LSTM, "widhts": [8]}], "sweep.families, lstm: model.widhts: unknown key"),
        ([TRANSFORMER, {**LSTM, "family": "recurent"}], "sweep.families, lstm: model.family: there is no family"),
        ([TRANSFORMER, {"family": "seq2seq", "widths": [8]}], "sweep.families, seq2seq: .*seq2seq reads pairs"),
        ([TRANSFORMER, {"family": "vae", "widths": [8]}], "transformer reads text and vae reads sentences"),
        ([TRANSFORMER, {**LSTM, "widths": [2048]}], "sweep.families, lstm: sweep: lstm C=.* is shorter than one step"),
    ],
)
def test_a_family_that_makes_no_sweep_is_refused_in_one_line(families: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tasks(tmp_path, *families)
    assert "\n" not in str(raised.value)


def test_an_unknown_key_of_an_optimizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    families = "[{family: transformer, widths: [8], optimizer: {lerning_rate: 1}}]"
    path.write_text(f"data: {{source: builtin:stdlib}}\nsweep: {{budgets: [1e10], families: {families}}}\n")
    with pytest.raises(UserError, match="did you mean learning_rate"):
        load_recipe(path)


def test_a_fit_for_each_family_and_one_comparison(tmp_path: Path) -> None:
    wanted = recipe(TRANSFORMER, LSTM)
    made = sweep_tasks(wanted, Store(tmp_path))
    outcomes = {cell.train.identity: Outcome(cell.train, "made") for cell in made.cells}
    lost = made.families[1].cells[0].train
    outcomes[lost.identity] = Outcome(lost, "failed", error="out of memory")
    fits = {family.name: fit_task(wanted, family, outcomes) for family in made.families}
    assert [fit.title for fit in fits.values()] == ["fit several/transformer", "fit several/lstm"]
    assert len(fits["transformer"].inputs) == 4 and len(fits["lstm"].inputs) == 5
    assert spec_of(fits["lstm"]).excluded[0].reason == "out of memory"
    assert fits["lstm"].tags["family"] == "lstm"
    assert fits["lstm"].tags["mlflow.runColor"] == made.families[1].cells[0].train.tags["mlflow.runColor"]
    compared = compare_task(wanted, fits)
    assert dict(compared.inputs) == fits
    assert after_the_cells(wanted) >= {"fit", "compare", "report", "fit several/lstm", "compare several"}


def test_the_ledger_of_pairs_waits_for_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = [{"family": "seq2seq", "widths": [8, 16]}, {"family": "encoder-decoder", "widths": [8, 16]}]
    wanted = recipe(*families, data=PAIRS, train={"batch": 64})
    assert sweep_tasks(wanted, Store(tmp_path)).provisional
    print_plan(wanted, str(tmp_path), (), settings=False)
    said = capsys.readouterr().out
    assert "the cells are a guess" in said and "encoder-decoder width" in said and "a fit for each family" in said
    assert not tasks(tmp_path, TRANSFORMER, LSTM).provisional


def test_predict_asks_which_family_is_meant(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("several/lstm", "several/gru", "alone"):
        folder = store.artifact("fit", name.replace("/", "-") + "0" * 40)
        folder.mkdir(parents=True)
        (folder / "fit.json").write_text("{}")
        described = {"task": "fit", "version": 1, "spec": {}, "inputs": {}}
        write_manifest(folder, described, identity=folder.name, label=f"fit {name}", attempt="a", started=0.0)
    root = str(tmp_path)
    with pytest.raises(UserError, match="several: has a law for each of its families; add --family gru, lstm"):
        print_prediction(Asked("several", root), "1e12")
    with pytest.raises(UserError, match="--family rnn: several has no such family; it has gru, lstm"):
        print_prediction(Asked("several", root, "rnn"), "1e12")
    with pytest.raises(UserError, match="it is not a sweep of several families"):
        print_prediction(Asked("alone", root, "lstm"), "1e12")
    with pytest.raises(UserError, match=r"several-lstm.*is not a fit.json"):
        print_prediction(Asked("several", root, "lstm"), "1e12")


def test_a_guess_of_the_lengths_refuses_no_cell(tmp_path: Path) -> None:
    """Before the dataset is there a unit may look dearer than it is; a cell too short in truth is refused later."""
    families = [{"family": "seq2seq", "widths": [16]}]
    short = recipe(*families, data=PAIRS, sweep={"budgets": [1e6]}, train={"batch": 4096})
    assert sweep_tasks(short, Store(tmp_path)).provisional
    with pytest.raises(UserError, match="shorter than one step"):
        tasks(tmp_path, TRANSFORMER, sweep={"budgets": [1e6]}, train={"batch": 4096})


@pytest.mark.slow
def test_a_sweep_of_families_on_pairs_from_data_to_report(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(
        "data: {kind: pairs, generated: {kind: reverse, examples: 400, length: 6, shortest: 3, symbols: 6},\n"
        "  tokenizer: {kind: bytes}, sequence: 16}\n"
        "train: {batch: 64, validation: {units: 512}}\n"
        "sweep:\n"
        "  budgets: [1e7, 3e7, 9e7]\n"
        "  families:\n"
        "    - {family: seq2seq, widths: [4, 6, 8]}\n"
        "    - {family: encoder-decoder, widths: [4, 6, 8]}\n"
    )
    root = ["--root", str(tmp_path / "root")]
    first = CliRunner().invoke(main, ["sweep", str(path), *root])
    assert first.exit_code == 0, first.output
    assert "18 cells" in first.output and "  seq2seq " in first.output and "--family seq2seq" in first.output
    store = Store(tmp_path / "root")
    for cell in sweep_tasks(load_recipe(path), store).cells:
        assert store.committed("train", cell.train.identity), "the cells are those of the data's own lengths"
        assert cell.plan.budget is not None and cell.plan.flops == pytest.approx(cell.plan.budget, rel=0.1)
    page = next((tmp_path / "root" / "artifacts" / "report").glob("*/report.html")).read_text()
    assert "What overtakes what" in page and page.count("All runs") == 2
    again = CliRunner().invoke(main, ["sweep", str(path), *root])
    assert again.exit_code == 0 and "Starting Ray" not in again.output


def test_data_that_are_read_again_are_said_and_reach_the_fit(tmp_path: Path) -> None:
    """A dataset whose units lie between what the shortest and the longest cell read, and one that is larger."""
    wanted = recipe(TRANSFORMER)
    store = Store(tmp_path)
    made = sweep_tasks(wanted, store)
    training = [cell.train for cell in made.cells]
    read = sorted(spec_of(cell.train).stop_step * spec_of(cell.train).batch for cell in made.cells)
    assert warning_of_repeats(training, store) is None  # it is not made yet
    folder = store.artifact("dataset", made.dataset.identity)
    folder.mkdir(parents=True)
    described = {"task": "dataset", "version": 1, "spec": {}, "inputs": {}}
    for units, again in ((read[-1], 0), (read[-1] // 4, sum(4 * own > 1.001 * read[-1] for own in read))):
        content = {"kind": "text", "splits": {"train": {"tokens": units}}}
        (folder / "dataset.json").write_text(json.dumps(content))
        write_manifest(folder, described, identity=folder.name, label="dataset", attempt="a", started=0.0)
        said = warning_of_repeats(training, store)
        assert (said is not None) == (again > 0)
        assert repeated_units(training, store) == (units if again else None)
    assert said is not None and said.startswith(f"{again} of {len(read)} trainings read their data up to 4 times")
    fit = fit_task(wanted, made.families[0], {task.identity: Outcome(task, "made") for task in training}, read[0])
    assert spec_of(fit).unique_tokens == read[0]
    inputs = {name: tmp_path / name for name in fit.inputs}
    for path in inputs.values():
        path.mkdir()
        result = {"parameters": 1, "parameters_without_embeddings": 1, "units": 1, "flops": 1, "validation_loss": 1}
        (path / "result.json").write_text(json.dumps({**result, "status": "finished"}))
    assert set(table_of(spec_of(fit), inputs)["unique_tokens"]) == {read[0]}
