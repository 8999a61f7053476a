"""The cells of a sweep as plain data, before anything runs: their sizes and their numbers of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reducible.pipelines.recipe.recipe import Recipe, Sweep
from reducible.pipelines.training import Model, batch_units, scaled, steps_of
from reducible.tasks.errors import UserError


@dataclass(frozen=True)
class CellPlan:
    """One cell before it becomes a task. budget is None in a design by tokens."""

    model: Model
    width: int
    tokens: int
    batch: int
    seed: int
    budget: float | None = None
    family: str = ""
    """The family's name, in a sweep of several."""

    @property
    def label(self) -> str:
        size = self.model.cost.parameters
        start = f"C={self.budget:.3g}" if self.budget else f"D={self.tokens:.3g}"
        whose = f"{self.family} " if self.family else ""
        return f"{whose}{start} N={size:,} (width {self.width})" + (f" seed {self.seed}" if self.seed else "")

    @property
    def flops(self) -> float:
        return steps_of(self.tokens, self.batch) * self.batch * self.model.cost.training_flops_per_unit

    @property
    def units_per_parameter(self) -> float:
        return self.tokens / self.model.cost.parameters


def recipes_of(recipe: Recipe) -> dict[str, Recipe]:
    """A recipe for each family of the sweep, by name. A single family has the name "".

    The recipes share everything except model, optimizer and widths.
    """
    sweep = recipe.sweep
    assert sweep is not None
    if not sweep.families:
        return {"": recipe}
    recipes = {}
    for entry in sweep.families:
        own: dict[str, Any] = {"families": ()}
        if entry.widths or entry.sizes:
            own |= {"widths": entry.widths, "sizes": entry.sizes}
        train = recipe.train
        if entry.optimizer is not None:
            own_kind = entry.optimizer.kind != train.optimizer.kind
            given = {key: getattr(entry.optimizer, key) for key in entry.optimizer.model_fields_set}
            chosen = entry.optimizer if own_kind else train.optimizer.model_copy(update=given)
            train = train.model_copy(update={"optimizer": chosen})
        parts = {"model": entry.model, "train": train, "sweep": sweep.model_copy(update=own)}
        recipes[entry.title] = recipe.model_copy(update=parts)
    return recipes


@contextmanager
def blamed(family: str) -> Iterator[None]:
    """Adds the family's name to a mistake in its section, if there are several families."""
    try:
        yield
    except UserError as error:
        if not family:
            raise
        raise UserError(f"sweep.families, {family}: {error}") from None


def cells_of(recipe: Recipe, base: Model, family: str = "", provisional: bool = False) -> list[CellPlan]:
    """The grid as the recipe describes it, smallest budget first.

    family: its name in a sweep of several. provisional: the cost of a unit is a guess, so no cell is refused.

    Raises:
        UserError: no cell is left, or one is too short for a single step.
    """
    sweep = recipe.sweep
    assert sweep is not None
    cells = [
        cell
        for seed in range(recipe.train.seed, recipe.train.seed + sweep.seeds)
        for cell in _grid(recipe, sweep, base, seed, family)
    ]
    if sweep.tokens_per_parameter is not None:
        low, high = sweep.tokens_per_parameter
        cells = [cell for cell in cells if low <= cell.units_per_parameter <= high]
        if not cells:
            raise UserError(f"sweep.tokens_per_parameter: no cell of the grid has between {low:g} and {high:g}")
    for cell in cells:
        if cell.tokens < cell.batch and not provisional:
            raise UserError(
                f"sweep: {cell.label} is shorter than one step ({cell.tokens} of {cell.batch} target units); "
                "a larger budget, a smaller width or a smaller batch would do"
            )
    return cells


def _grid(recipe: Recipe, sweep: Sweep, base: Model, seed: int, family: str) -> Iterator[CellPlan]:
    if base.cost.training_flops_per_unit == 0:
        raise UserError(
            f"sweep: the cost of a {base.family.name} says 0 training FLOPs a {recipe.data.unit}, and a sweep asks how "
            "loss falls with FLOPs; count its matrix products in the family's cost"
        )
    planned = list(_planned(sweep, base))
    # The branches of a trunk share the batch of the shortest, so that adding a longer one changes nothing.
    shortest: dict[int, int] = {}
    for _, width, tokens, *_ in planned:
        shortest[width] = min(tokens, shortest.get(width, tokens))
    for model, width, tokens, budget, batch in planned:
        units = batch_units(recipe, model, shortest[width] if sweep.trunk else tokens, batch)
        yield CellPlan(model, width, tokens, units, seed, budget, family)


def _planned(sweep: Sweep, base: Model) -> Iterator[tuple[Model, int, int, float | None, int | None]]:
    """The model, width, target units, budget and given batch of each cell, in the order of the recipe."""
    if sweep.cells:
        for cell in sweep.cells:
            yield scaled(base, cell.width), cell.width, cell.tokens, None, None
        return
    for index, amount in enumerate(sweep.budgets or sweep.tokens):
        batch = sweep.batches[index] if sweep.batches else None
        for width in _widths(sweep, index, base):
            model = scaled(base, width)
            tokens = round(amount / model.cost.training_flops_per_unit) if sweep.budgets else round(amount)
            yield model, width, tokens, float(amount) if sweep.budgets else None, batch


def _widths(sweep: Sweep, index: int, base: Model) -> list[int]:
    if not sweep.sizes:
        listed = sweep.widths[index] if isinstance(sweep.widths[0], tuple) else sweep.widths
        return list(listed)
    from reducible.models.cost.size_ladder import sized

    return [sized(base.family, base.config, size, base.lengths).width for size in sweep.sizes]
