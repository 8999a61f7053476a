"""Models that someone thinks of training, from a table: a name, N and D."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reducible.tasks.errors import UserError
from reducible.tasks.fit.column_names import find_columns
from reducible.tasks.fit.numerals import columns_of_numbers
from reducible.tasks.fit.run_table import refuse_two_units
from reducible.tasks.fit.table import empty, read_table


@dataclass(frozen=True)
class Plan:
    """N parameters trained on D units."""

    name: str
    N: float
    D: float


def read_plans(location: str) -> list[Plan]:
    """A plan for each row, in the table's order; one without a name is called by its row.

    Raises:
        UserError: a column is missing, or a cell is no positive number.
    """
    table = read_table(location)
    cells = table.columns
    same = {name: tuple(map(str, column)) for name, column in cells.items()}
    columns = find_columns(list(cells), {}, dict.fromkeys(cells, True), same, table.where)
    for role in ("N", "D"):
        if role not in columns.of:
            raise UserError(f"{table.where} lacks the column {role}; it has {', '.join(cells) or 'none'}")
    wanted = {columns.of[role]: cells[columns.of[role]] for role in ("N", "D")}
    spoken = {name: [None if empty(cell) else cell for cell in column] for name, column in wanted.items()}
    read = columns_of_numbers(spoken, list(wanted), None, table.where)
    for role in ("N", "D"):
        if columns.meanings[role].factor != 1:
            refuse_two_units(table, columns.of[role])
    names = cells[columns.of["name"]] if "name" in columns.of else [None] * table.rows
    plans = []
    for row, name in enumerate(names):
        at = {}
        for role in ("N", "D"):
            at[role] = read[columns.of[role]][row] * columns.meanings[role].factor
            if not (math.isfinite(at[role]) and at[role] > 0):
                where = f"{table.where}, row {row + 2}, column {columns.of[role]}"
                raise UserError(
                    f"{where}: {'is empty' if math.isnan(at[role]) else f'{at[role]:g}'}, not a positive number"
                )
        plans.append(Plan(f"row {row + 2}" if empty(name) else str(name).strip(), at["N"], at["D"]))
    if not plans:
        raise UserError(f"{table.where} has no rows: one row per model is needed")
    return plans
