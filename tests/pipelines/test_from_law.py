"""The model that a law recommends: its size, its tasks, the prediction held against it, the law fitted anew.

The cells of the sweeps here are not trained: their losses are those of a known law with a little noise.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import called, make, without_ray
from law_cases import QUICK
from page_cases import Page

from reducible.models.cost.size_ladder import rungs
from reducible.pipelines.from_law import Recommended, recommended
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.pipelines.sweep.sweep import compare_task, fit_task, report_task
from reducible.pipelines.training import scaled
from reducible.tasks.errors import UserError
from reducible.tasks.fit.confirmation import FILE, Confirmation
from reducible.tasks.fit.predict import predict, predict_model
from reducible.tasks.fit.result import Fit
from reducible.tasks.report import style
from reducible.tasks.workflow.outcome import Outcome
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task, description

TEXT = {"generated": {"documents": 200, "length": 200, "symbols": 8}, "tokenizer": {"kind": "bytes"}, "sequence": 32}
DESIGN = {
    "budgets": [1e8, 4e8, 1.6e9, 6.4e9],
    "widths": [[4, 6, 8, 12], [4, 8, 12, 16], [8, 12, 16, 24], [12, 16, 24, 32]],
}
RNG = np.random.default_rng(3)


def law(N: float, D: float) -> float:
    return 1.2 + 12 * N**-0.35 + 40 * D**-0.38


def best_rate(N: float, D: float) -> float:
    return 0.01 * (N / 5000) ** -0.2 * (D / 50_000) ** -0.15


def recipe(sweep: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    given = {"name": "toy", "data": TEXT, "train": {"batch": 256, "seed": 5}, "sweep": {**DESIGN, **(sweep or {})}}
    return Recipe.model_validate({**given, **sections})


def trained(task: Task, N: int, D: float, C: float, loss: float | None, store: Store) -> None:
    """An artifact as a training leaves it, without a model."""
    result = {
        "status": "finished" if loss else "diverged",
        "reason": None if loss else "loss is not finite at step 9",
        "step": 100,
        "units": D,
        "flops": C,
        "parameters": N,
        "parameters_without_embeddings": N // 2,
        "validation_loss": loss,
        "learning_rate": 4e-3,
    }
    with store.staged("train", task.identity, task.title, description(task)) as (_, folder):
        (folder / "result.json").write_text(json.dumps(result))


def searched(task: Task, N: int, D: float, store: Store) -> None:
    """An artifact as a search leaves it: the loss is a parabola in log rate about the best rate of (N, D)."""
    spec: Any = task.spec
    trials = [[rate, 2 + 0.05 * math.log(rate / best_rate(N, D)) ** 2] for rate in spec.rates]
    best = min(trials, key=lambda trial: trial[1])[0]
    result = {"learning_rate": best, "at_edge": best in (spec.rates[0], spec.rates[-1]), "trials": trials}
    with store.staged("search", task.identity, task.title, description(task)) as (_, folder):
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "record").mkdir()


def swept(wanted: Recipe, store: Store, noise: float = 0.002, lost: Sequence[int] = ()) -> None:
    """The sweep's dataset, cells, fit (of each family) and report."""
    make([wanted.data.dataset_task(wanted.name, store)], store)
    made = sweep_tasks(wanted, store)
    for index, cell in enumerate(made.cells):
        N = cell.plan.model.cost.parameters
        loss = None if index in lost else law(N, cell.plan.tokens) * math.exp(noise * RNG.normal())
        if "search" in cell.train.inputs:
            searched(cell.train.inputs["search"], N, cell.plan.tokens, store)
        trained(cell.train, N, cell.plan.tokens, cell.plan.flops, loss, store)
    outcomes = {cell.train.identity: Outcome(cell.train, "made") for cell in made.cells}
    fits = {family.name: fit_task(wanted, family, outcomes) for family in made.families}
    make([*fits.values(), *([compare_task(wanted, fits)] if "" not in fits else [])], store)
    make([report_task(wanted, fits, made.dataset, store)], store)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        patch.setattr("reducible.tasks.report.page.draw", lambda *_: [])  # pictures are another file's matter
        patch.setattr("reducible.pipelines.sweep.sweep.FitOptions", lambda: QUICK)
        without_ray(patch)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("root"))
    swept(recipe(), made)
    return made


def fit_in(store: Store, task: Task) -> Fit:
    return Fit.load(store.artifact("fit", task.identity) / "fit.json")


def with_loss(chosen: Recommended, store: Store, loss: float | None) -> Confirmation:
    """The recommended run ends with this loss; the law's report is made."""
    cell = chosen.cell
    trained(chosen.run.train, cell.model.cost.parameters, cell.tokens, cell.flops, loss, store)
    make([chosen.report], store)
    return Confirmation.load(store.artifact("prediction", chosen.confirmation.identity) / FILE)


def test_the_rung_is_the_nearest_to_the_law_s_optimum_and_the_run_spends_the_budget(store: Store) -> None:
    chosen = recommended("toy", 5e10, None, (), store)
    best = predict(chosen.source.fit, compute=5e10)
    sizes = {width: scaled(chosen.cell.model, width).cost.parameters for width in rungs() if width < 500}
    nearest = min(sizes, key=lambda width: abs(math.log(sizes[width] / best.N.value)))
    assert chosen.cell.width == nearest and chosen.best.N == best.N
    assert chosen.cell.flops == pytest.approx(5e10, rel=0.01)
    assert chosen.name == "toy-5e10"


def test_the_run_is_the_cell_that_the_sweep_would_train_there(store: Store) -> None:
    """Data, seed, batch, learning rate and schedule: one identity says all of it."""
    chosen = recommended("toy", 5e10, None, (), store)
    there = recipe({"budgets": [5e10], "widths": [chosen.cell.width]})
    (cell,) = sweep_tasks(there, store).cells
    assert cell.train.identity == chosen.run.train.identity
    spec: Any = chosen.run.train.spec
    assert spec.seed == 5 and chosen.run.train.title == "train toy-5e10"


def test_a_searched_rate_is_that_of_the_searches_law(tmp_path: Path) -> None:
    store = Store(tmp_path)
    swept(recipe({"learning_rate": {"samples": 9, "low": 1e-3, "high": 1e-1}}), store)
    chosen = recommended("toy", 5e10, None, (), store)
    spec: Any = chosen.run.train.spec
    truth = best_rate(chosen.cell.model.cost.parameters, chosen.cell.tokens)
    assert spec.optimizer.learning_rate == pytest.approx(truth, rel=0.02)
    assert "by the law of the sweep's searches" in chosen.rate and "search" not in chosen.run.train.inputs


def test_without_a_law_of_rates_the_run_searches_as_the_cells_did(tmp_path: Path) -> None:
    store = Store(tmp_path)
    search = {"samples": 3, "low": 1e-3, "high": 5e-3}  # the best rates lie above
    swept(recipe({"learning_rate": search}), store)
    chosen = recommended("toy", 5e10, None, (), store)
    there = recipe({"budgets": [5e10], "widths": [chosen.cell.width], "learning_rate": search})
    assert sweep_tasks(there, store).cells[0].train.identity == chosen.run.train.identity
    assert "from a search of 3 in the run, as in the cells (no law" in chosen.rate
    assert set(chosen.fit.inputs) >= {"search-0000", "search-confirming-0016"}


def test_a_batch_of_each_budget_continues_on_its_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    swept(recipe({"batches": [64, 128, 256, 512]}), store)
    # Twice the batch for four times the budget.
    assert recommended("toy", 4 * 6.4e9, None, (), store).cell.batch == 1024
    assert recommended("toy", 1.6e9, None, (), store).cell.batch == 256


def test_the_law_is_fitted_anew_and_the_sweep_s_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    swept(recipe(), store)
    chosen = recommended("toy", 5e10, None, (), store)
    before = {path: path.read_bytes() for path in (tmp_path / "artifacts" / "fit").rglob("*") if path.is_file()}
    size = chosen.cell.model.cost.parameters
    found = with_loss(chosen, store, law(size, chosen.cell.tokens))
    after = fit_in(store, chosen.fit)
    assert {path: path.read_bytes() for path in before} == before
    assert {run.name for run in after.used} - {run.name for run in chosen.source.fit.used} == {"toy-5e10"}
    assert len(after.used) == len(chosen.source.fit.used) + 1 and after.largest_compute > 4e10
    # What was predicted is what the sweep's fit alone says.
    expected = predict_model(chosen.source.fit, size, chosen.cell.tokens).loss
    assert found.predicted == expected and found.held is True
    assert found.error == pytest.approx(law(size, chosen.cell.tokens) / expected.value - 1)
    page = Page((store.artifact("report", chosen.report.identity) / "report.html").read_text())
    assert "Did the prediction hold?" in page.text and "The prediction held: toy predicted" in page.text
    (row,) = read_rows(store.artifact("prediction", chosen.confirmation.identity) / "record")
    assert row["metrics"]["final/predicted_loss"] == expected.value and row["metrics"]["final/prediction_held"] == 1
    (row,) = read_rows(store.artifact("report", chosen.report.identity) / "record")
    assert row["metrics"]["final/predicted_loss_low"] == expected.low and "law/E" in row["metrics"]
    told = called("predict", "toy", "--held", "--root", tmp_path)
    assert told.exit_code == 0 and told.output == f"{found.sentence}\n"
    none = called("predict", "toy-5e10", "--held", "--root", tmp_path)
    assert "toy-5e10: no run was trained by its law yet; reducible run --from-law toy-5e10 --flops FLOPS" in none.output
    # The new law recommends as the sweep's does, and its page holds both predictions.
    second = recommended("toy-5e10", 2e11, None, (), store)
    assert second.name == "toy-5e10-2e11" and second.source.fit.used == after.used
    size = second.cell.model.cost.parameters
    found = with_loss(second, store, 1.2 * law(size, second.cell.tokens))
    assert found.held is False and found.law == "toy-5e10"
    page = Page((store.artifact("report", second.report.identity) / "report.html").read_text())
    assert "The prediction held: toy predicted" in page.text
    assert "The prediction did not hold: toy-5e10 predicted" in page.text


def test_a_run_that_diverged_has_no_loss_to_hold_against_the_law(store: Store) -> None:
    chosen = recommended("toy", 3e10, None, (), store)
    found = with_loss(chosen, store, None)
    assert found.held is None and found.actual is None
    assert "has no loss: diverged: loss is not finite at step 9" in found.sentence
    (left_out,) = fit_in(store, chosen.fit).excluded
    assert left_out.name == "toy-3e10"


def test_how_it_runs_may_be_set_and_what_it_is_may_not(store: Store) -> None:
    chosen = recommended("toy", 5e10, None, ("compute.workers=2", "train.checkpointing=full"), store)
    assert chosen.run.train.resources.workers == 2
    assert chosen.run.train.identity == recommended("toy", 5e10, None, (), store).run.train.identity
    with pytest.raises(UserError, match="model.width=8: --from-law trains what the sweep's law recommends; only"):
        recommended("toy", 5e10, None, ("model.width=8",), store)


def test_what_no_law_can_recommend_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--flops 1e\\+07: is below the smallest run of toy, 9.92e\\+07"):
        recommended("toy", 1e7, None, (), store)
    with pytest.raises(UserError, match="nothing: no fit of that name"):
        recommended("nothing", 1e9, None, (), store)
    few = Store(tmp_path / "few")
    swept(recipe({"budgets": [1e9], "widths": [8, 12, 16]}), few)
    with pytest.raises(UserError, match="no law was fitted, so nothing can be predicted. .* 3 runs at distinct"):
        recommended("toy", 1e10, None, (), few)
    line = Store(tmp_path / "line")
    cells = [
        {"width": width, "tokens": tokens}
        for width, tokens in zip(range(4, 24, 2), range(40_000, 240_000, 20_000), strict=True)
    ]
    swept(recipe({"budgets": [], "widths": [], "cells": cells}), line)
    with pytest.raises(UserError, match="cannot say how to split compute between N and D"):
        recommended("toy", 1e11, None, (), line)


def test_data_that_have_changed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("".join(f"line {n} of a text\n" for n in range(600)))
    data = {"source": str(tmp_path / "notes.txt"), "documents": "line", "tokenizer": {"kind": "bytes"}, "sequence": 32}
    store = Store(tmp_path / "root")
    swept(recipe(data=data), store)
    assert recommended("toy", 5e10, None, (), store).run.dataset.identity
    (tmp_path / "notes.txt").write_text("".join(f"line {n} of another\n" for n in range(600)))
    with pytest.raises(UserError, match="toy: its data have changed since"):
        recommended("toy", 5e10, None, (), store)


def test_one_of_several_laws_is_asked_for_by_its_family(tmp_path: Path) -> None:
    store = Store(tmp_path)
    families = [
        {"family": "transformer"},
        {"name": "gru", "family": "recurrent", "cell": "gru", "optimizer": {"learning_rate": 0.02}},
    ]
    swept(recipe({"families": families}), store)
    with pytest.raises(UserError, match="toy: has a law for each of its families; add --family gru, transformer"):
        recommended("toy", 5e10, None, (), store)
    chosen = recommended("toy", 5e10, "gru", (), store)
    spec: Any = chosen.run.train.spec
    assert chosen.name == "toy-gru-5e10" and spec.model["cell"] == "gru" and spec.optimizer.learning_rate == 0.02
    assert with_loss(chosen, store, 1.5).law == "toy/gru"
    assert recommended("toy-gru-5e10", 1e11, None, (), store).run.train.spec.family == "recurrent"  # type: ignore[attr-defined]


def test_plan_shows_the_recommendation_and_makes_nothing(store: Store) -> None:
    told = called("plan", "--from-law", "toy", "--flops", "4e10", "--root", store.root)
    assert told.exit_code == 0, told.output
    chosen = recommended("toy", 4e10, None, (), store)
    assert f"width {chosen.cell.width}" in told.output and f"predicted loss {chosen.expected.loss}" in told.output
    assert "will run  train toy-4e10" in told.output and "will run  report toy-4e10" in told.output
    assert not store.committed("train", chosen.run.train.identity)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--from-law", "toy"], "--from-law: needs the budget too; add --flops FLOPS"),
        (["run", "--from-law", "toy", "--flops", "much"], "--flops much: must be a number of FLOPs above 0"),
        (["run", "--flops", "1e9"], "--flops: belongs to --from-law SWEEP"),
        (["run"], "give a recipe, or --from-law SWEEP with --flops FLOPS"),
        (["plan", "--from-law", "toy", "--flops", "1e10", "--settings"], "--settings: shows a recipe"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, store: Store) -> None:
    result = called(*arguments, "--root", store.root)
    assert result.exit_code == 2 and line in result.output and "Traceback" not in result.output


@pytest.mark.slow
def test_the_command_trains_the_model_and_shows_its_loss_beside_the_predicted_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    swept(recipe(), store)
    told = called("run", "--from-law", "toy", "--flops", "1.1e8", "--root", tmp_path, "evaluate.units=2000")
    assert told.exit_code == 0, told.output
    chosen = recommended("toy", 1.1e8, None, ("evaluate.units=2000",), store)
    found = Confirmation.load(store.artifact("prediction", chosen.confirmation.identity) / FILE)
    result = json.loads((store.artifact("train", chosen.run.train.identity) / "result.json").read_text())
    assert found.actual == result["validation_loss"] and found.sentence in told.output
    assert "toy-1.1e8: " in told.output and "predict toy-1.1e8 --compute 1.1e9" in told.output
    again = called("run", "--from-law", "toy", "--flops", "1.1e8", "--root", tmp_path, "evaluate.units=2000")
    assert again.exit_code == 0 and found.sentence in again.output and "will run" not in again.output
    wrote = called("sample", "toy-1.1e8", "--tokens", "5", "--root", tmp_path)
    assert wrote.exit_code == 0, wrote.output
