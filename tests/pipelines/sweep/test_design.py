"""The cells of a sweep: budgets are met, trunks share what they can, additions change nothing that was there."""

from pathlib import Path
from typing import Any

import pytest

from reducible.models.cost.ledger import Lengths
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.sweep.cells import SweepTasks, sweep_tasks
from reducible.pipelines.sweep.design import cells_of
from reducible.pipelines.training import Model, model_of
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order


def recipe(sweep: dict[str, Any], **sections: Any) -> Recipe:
    data = {"generated": {"documents": 50}, "tokenizer": {"kind": "bytes"}, "sequence": 64}
    return Recipe.model_validate({"name": "sweep", "data": data, "sweep": sweep, **sections})


def tasks(root: Path, sweep: dict[str, Any], **sections: Any) -> SweepTasks:
    return sweep_tasks(recipe(sweep, **sections), Store(root))


def identities(made: SweepTasks) -> set[str]:
    return {task.identity for task in in_order([cell.train for cell in made.cells])}


def base_of(wanted: Recipe) -> Model:
    return model_of(wanted, {"vocabulary": 257}, Lengths.fixed(64))


def test_every_cell_spends_its_budget() -> None:
    wanted = recipe({"budgets": [1e10, 4e10], "widths": [16, 32]})
    cells = cells_of(wanted, base_of(wanted))
    assert [(cell.budget, cell.width) for cell in cells] == [(1e10, 16), (1e10, 32), (4e10, 16), (4e10, 32)]
    for cell in cells:
        assert cell.budget is not None
        assert cell.flops == pytest.approx(cell.budget, rel=0.02)


def test_sizes_ask_for_about_so_many_parameters() -> None:
    wanted = recipe({"budgets": [1e11], "sizes": ["20k", "100k"]})
    cells = cells_of(wanted, base_of(wanted))
    for cell, size in zip(cells, (20_000, 100_000), strict=True):
        assert cell.model.cost.parameters == pytest.approx(size, rel=0.35)


def test_cells_outside_the_range_of_tokens_per_parameter_are_left_out() -> None:
    wanted = recipe({"budgets": [1e10, 1e11], "widths": [16, 32, 64], "tokens_per_parameter": [5, 100]})
    cells = cells_of(wanted, base_of(wanted))
    assert 0 < len(cells) < 6
    assert all(5 <= cell.units_per_parameter <= 100 for cell in cells)
    with pytest.raises(UserError, match="tokens_per_parameter"):
        nothing = recipe({"budgets": [1e10], "widths": [16], "tokens_per_parameter": [1e6, 1e7]})
        cells_of(nothing, base_of(nothing))


def test_a_cell_shorter_than_a_step_is_refused_by_name() -> None:
    wanted = recipe({"budgets": [1e6], "widths": [16]})
    with pytest.raises(UserError, match=r"C=1e\+06 .*shorter than one step"):
        cells_of(wanted, base_of(wanted))


def test_adding_a_budget_or_a_seed_adds_cells_and_changes_none(tmp_path: Path) -> None:
    before = tasks(tmp_path, {"budgets": [1e10], "widths": [16, 32]})
    after = tasks(tmp_path, {"budgets": [1e10, 1e11], "widths": [16, 32], "seeds": 2})
    assert identities(before) < identities(after)
    assert len(after.cells) == 8


def test_renaming_a_recipe_trains_nothing_again(tmp_path: Path) -> None:
    sweep = {"budgets": [1e10], "widths": [16]}
    assert identities(tasks(tmp_path, sweep)) == identities(
        tasks(tmp_path, sweep) and sweep_tasks(recipe(sweep).model_copy(update={"name": "other"}), Store(tmp_path))
    )


def test_execution_is_no_identity(tmp_path: Path) -> None:
    sweep = {"budgets": [1e10], "widths": [16]}
    elsewhere = tasks(tmp_path, sweep, compute={"workers": 2, "strategy": "ddp", "log_every": 3, "checkpoint_every": 5})
    assert identities(tasks(tmp_path, sweep)) == identities(elsewhere)


def test_a_trunk_is_a_chain_and_branches_hang_on_it(tmp_path: Path) -> None:
    train = {"batch": 640, "schedule": {"cooldown": 0.2, "warmup": 0.1}}
    made = tasks(tmp_path, {"tokens": [64_000, 128_000, 256_000], "widths": [16], "trunk": True}, train=train)
    short, middle, long = [cell.train for cell in made.cells]
    assert [task.spec.stop_step for task in (short, middle, long)] == [100, 200, 400]
    for branch, leaves in ((short, 80), (middle, 160), (long, 320)):
        segment = branch.inputs["start"]
        assert branch.spec.start_step == segment.spec.stop_step == leaves
        assert branch.spec.schedule.kind == "wsd" and branch.spec.schedule.cooldown_steps == 0.2 * branch.spec.stop_step
        assert segment.spec.schedule.kind == "constant"
        assert segment.spec.schedule.warmup_steps == branch.spec.schedule.warmup_steps == 10
    assert long.inputs["start"].inputs["start"] is middle.inputs["start"]
    assert middle.inputs["start"].inputs["start"] is short.inputs["start"]
    assert short.inputs["start"].spec.start_step == 0


@pytest.mark.parametrize(
    "design",
    [
        {"budgets": [1e10, 2e10, 4e10], "widths": [16, 32]},
        {"budgets": [1e10, 2e10, 4e10], "widths": [[16], [16, 32], [16, 32]]},
        {"cells": [{"width": 16, "tokens": 64_000}, {"width": 32, "tokens": 96_000}, {"width": 16, "tokens": 96_000}]},
    ],
)
def test_any_design_has_its_trunks(tmp_path: Path, design: dict[str, Any]) -> None:
    """The cells are those of the design without trunks; each leaves the trunk of its size and seed."""
    apart, branches = tasks(tmp_path, design | {"seeds": 2}), tasks(tmp_path, design | {"seeds": 2, "trunk": True})

    def planned(made: SweepTasks) -> set[tuple[Any, ...]]:
        return {(cell.plan.seed, cell.plan.width, cell.plan.tokens, cell.plan.budget) for cell in made.cells}

    assert planned(apart) == planned(branches)
    for seed, width in {(cell.plan.seed, cell.plan.width) for cell in branches.cells}:
        own = [cell for cell in branches.cells if (cell.plan.seed, cell.plan.width) == (seed, width)]
        segments = {
            task.identity for task in in_order([cell.train for cell in own]) if task.tags.get("role") == "trunk"
        }
        assert len(segments) == len(own)
        assert len({(task.spec.batch, task.spec.schedule.warmup_steps) for task in (c.train for c in own)}) == 1


def test_a_schedule_of_the_family_has_one_horizon_on_a_trunk(tmp_path: Path) -> None:
    """That of the shortest branch, so that a longer one changes nothing. Families without a schedule need none."""
    (tmp_path / "lines.txt").write_text("".join(f"line {n} of many\n" for n in range(300)))
    source = {"source": str(tmp_path / "lines.txt"), "documents": "line"}
    data = {**source, "tokenizer": {"kind": "bytes"}, "sequence": 32}
    design = {"tokens": [6_400, 12_800], "widths": [16], "trunk": True}
    content = {"name": "s", "data": data, "model": {"family": "vae"}, "train": {"batch": 640}, "sweep": design}
    made = sweep_tasks(Recipe.model_validate(content), Store(tmp_path / "root"))
    trainings = [task for task in in_order([cell.train for cell in made.cells]) if task.name == "train"]
    assert [task.spec.horizon for task in trainings] == [10] * 4
    text = tasks(tmp_path, design, train={"batch": 640})
    assert {task.spec.horizon for task in in_order([cell.train for cell in text.cells]) if task.name == "train"} == {
        None
    }


def test_a_longer_trunk_repeats_nothing(tmp_path: Path) -> None:
    sweep = {"tokens": [64_000, 128_000], "widths": [16, 32], "trunk": True}
    before = tasks(tmp_path, sweep)
    after = tasks(tmp_path, {**sweep, "tokens": [64_000, 128_000, 512_000]})
    assert identities(before) < identities(after)
    added = [task for task in in_order([cell.train for cell in after.cells]) if task.identity not in identities(before)]
    # One segment and one branch for each of the two sizes.
    assert sorted(task.tags["role"] for task in added) == ["cell", "cell", "trunk", "trunk"]


def test_a_search_hands_its_rate_to_the_cell(tmp_path: Path) -> None:
    made = tasks(
        tmp_path, {"budgets": [1e10], "widths": [16], "learning_rate": {"samples": 3, "low": 1e-3, "high": 1e-1}}
    )
    train = made.cells[0].train
    assert train.spec.optimizer.learning_rate is None
    assert train.inputs["search"].spec.rates == [0.001, 0.01, 0.1]
    assert train.inputs["search"].spec.train.stop_step < train.spec.stop_step
