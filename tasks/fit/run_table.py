"""Any table of runs as the columns of a fit: which column is which, in which units, and what is not used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.column_names import COUNTS, FAMILIES, NUMBERS, ROLES, Columns, find_columns, plain_name
from reducible.tasks.fit.numerals import Mark, columns_of_numbers, has_suffix, number
from reducible.tasks.fit.status import FINISHED, says_unfinished, status_word
from reducible.tasks.fit.summary_rows import refuse_summary
from reducible.tasks.fit.table import Table, empty, read_table
from reducible.tasks.fit.units import PF_DAY, check_counts, check_loss, check_units, nats
from reducible.tasks.words import listed, plural, unknown

Unit = Literal["nats", "bits", "perplexity"]
ComputeUnit = Literal["flops", "pf-days"]
Counts = Literal["parameters", "parameters_without_embeddings"]
SIZES = {"parameters": "N", "parameters_without_embeddings": "N_without_embeddings"}
STEPS = frozenset("step globalstep trainerglobalstep iteration iter epoch".split())  # noqa: SIM905
MOST_VALUES = 20  # a column of words with no more is one that divides the runs


@dataclass(frozen=True)
class TableOptions:
    """What a person says of a table, beyond what its names say."""

    columns: Mapping[str, str] = field(default_factory=dict)  # role -> column
    ignore: tuple[str, ...] = ()
    family: tuple[str, ...] = ()  # columns whose values each have a law
    experiment: str | None = None  # of MLflow
    unit: Unit | None = None
    compute_unit: ComputeUnit | None = None
    counts: Counts | None = None
    scales: Mapping[str, float] = field(default_factory=dict)  # role -> factor
    decimal: Mark | None = None
    unchecked: bool = False


@dataclass(frozen=True)
class RunTable:
    """The runs of one law, or of all families of a table."""

    table: pandas.DataFrame
    notes: tuple[str, ...]  # for the reader of the fit: what was assumed of its numbers
    remarks: tuple[str, ...]  # for the one who gives the command: which columns were read and which were not
    counts: Counts
    families: tuple[str, ...] = ()  # of each row, if asked for


def read_runs(location: str, options: TableOptions | None = None, needed: Sequence[str] = ("N", "D")) -> RunTable:
    """The table's runs in its own order: N, D, C, loss and what else a fit knows.

    `needed` are the columns that the form of the law reads, beside loss. A table without N or D needs C. An empty cell
    is nan: admission leaves that run out by name.

    Raises:
        UserError: a column is missing or may be several, a cell is not a number, a unit is not the usual one, or a
            column that matters is not used. The line names it and the option that says what is meant.
    """
    options = options or TableOptions()
    whole = read_table(location, options.experiment)
    _known(whole, (*options.ignore, *options.family))
    table = Table(whole.where, {name: cells for name, cells in whole.columns.items() if name not in options.ignore})
    columns = _columns(table, options)
    sizes = [size for size in ("N", "N_without_embeddings") if size in columns.of]
    there = {*columns.of, *(("N",) if sizes else ())}
    splits = {"N", "D"} <= there
    for role in (*needed, "loss", *(() if splits else ("C",))):
        if role not in there and not (role == "C" and splits):
            raise UserError(_lacking(table, role, needed, there))
    if not table.rows:
        raise UserError(f"{table.where} has no rows: one row per training run is needed")
    counts = _counts(table, columns, options)
    runs, notes = _runs(table, columns, options)
    if "C" not in runs:
        runs["C"] = 6 * runs[SIZES[counts]] * runs["D"]
        notes += ("C is not in the table and is taken as 6ND: give it if embeddings or attention cost much",)
    if splits and not options.unchecked:
        check = check_units if "C" in columns.of else check_counts
        refuse_summary(runs, table.where)
        check(runs, sizes[0], table.where)
        if options.unit is None and columns.meanings["loss"].unit is None:
            check_loss(runs, table.where)
    families = _families(table, options)
    _refuse_mixture(table, options)
    if "weight" in runs:
        notes += (f"runs weigh as {columns.of['weight']} says, from {runs.weight.min():g} to {runs.weight.max():g}",)
    if sizes and "N" not in runs:
        notes += ("N counts parameters without embeddings: the table has no other",)
    notes += _histories(table, runs)
    remarks = _remarks(table, columns, options, counts)
    return RunTable(runs[[role for role in ROLES if role in runs]], notes, remarks, counts, families)


def _lacking(table: Table, role: str, needed: Sequence[str], there: set[str]) -> str:
    wanted, others = ", ".join(dict.fromkeys((*needed, "loss"))), ", ".join(table.columns) or "none"
    line = (
        f"{table.where} lacks the column {role}; it needs {wanted} and has {others}; "
        f"--column {role}=NAME says which it is"
    )
    if role in ("N", "D") and {"C", "loss"} <= there:
        line += "; --form compute needs C and loss alone"
    return line


def _known(table: Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in table.columns:
            raise UserError(f"{table.where}: {unknown('column', name, table.columns)}")


def _columns(table: Table, options: TableOptions) -> Columns:
    left = [name for name in table.columns if name not in options.family or name in options.columns.values()]
    numeric = {
        name: any(_is_number(cell) for cell in table.columns[name] if not empty(cell)) or not table.rows
        for name in left
    }
    same = {name: tuple(map(str, table.columns[name])) for name in left}
    return find_columns(left, options.columns, numeric, same, table.where)


def _is_number(cell: object) -> bool:
    if isinstance(cell, str):
        return any(number(cell, mark, count=True) is not None for mark in ("point", "comma"))
    return isinstance(cell, int | float) or hasattr(cell, "__float__")


def _runs(table: Table, columns: Columns, options: TableOptions) -> tuple[pandas.DataFrame, tuple[str, ...]]:
    """The found columns in the units of a fit, and notes on what was changed."""
    runs: dict[str, Sequence[object]] = {}
    states = _states(table, columns)
    finished = [word in (None, FINISHED) for word in states]
    if "status" in columns.of or not all(finished):
        runs["status"] = states
    for role in ("name", "reason"):
        if role in columns.of:
            runs[role] = [None if cell is None else _word(cell) for cell in table.columns[columns.of[role]]]
    cells = {role: _spoken(table.columns[columns.of[role]], role) for role in NUMBERS if role in columns.of}
    read = columns_of_numbers(
        {columns.of[role]: values for role, values in cells.items()},
        [columns.of[role] for role in COUNTS if role in columns.of],
        options.decimal,
        table.where,
    )
    notes: tuple[str, ...] = ()
    for role in cells:
        values = np.array(read[columns.of[role]], dtype=float)
        said = columns.meanings[role]
        factor = options.scales.get(role, said.factor)
        if role == "C" and (options.compute_unit or said.unit) == "pf-days":
            factor *= PF_DAY
            notes += (f"C is read from {columns.of[role]} in PF-days",)
        elif factor != 1:
            notes += (f"{role} is read from {columns.of[role]}, times {factor:g}",)
        if factor != 1:
            refuse_two_units(table, columns.of[role])
            values = values * factor
        unit = (options.unit or said.unit or "nats") if role == "loss" else ""
        _check_values(table, columns.of[role], role, values, finished, unit)
        if role == "loss" and unit != "nats":
            values = nats(values, unit)
            notes += (f"loss is read from {columns.of[role]} in {unit} and given in nats",)
        runs[role] = [float(value) for value in values]
    for role in options.scales:
        if role not in cells:
            raise UserError(f"--scale {role}: {unknown('column of numbers in this table', role, cells)}")
    return pandas.DataFrame(runs), notes


def _states(table: Table, columns: Columns) -> list[str | None]:
    """Of each row, by the column of states and by columns such as diverged or finished that say yes or no."""
    states: list[str | None] = [None] * table.rows
    if "status" in columns.of:
        states = [None if empty(cell) else status_word(cell) for cell in table.columns[columns.of["status"]]]
    for name in _flags(table):
        for row, cell in enumerate(table.columns[name]):
            if says_unfinished(plain_name(name), cell) and states[row] in (None, FINISHED):
                states[row] = f"{name} is {_word(cell)}"
    return states


def _flags(table: Table) -> list[str]:
    return [name for name, cells in table.columns.items() if any(says_unfinished(plain_name(name), c) for c in cells)]


def refuse_two_units(table: Table, column: str) -> None:
    """A column whose unit is said once must not say it again in its cells."""
    for row, cell in enumerate(table.columns[column]):
        if isinstance(cell, str) and has_suffix(cell):
            raise UserError(
                f"{table.where}, row {row + 2}, column {column}: {cell.strip()} says its unit, and so does the name of "
                "the column or --scale; keep one"
            )


def _histories(table: Table, runs: pandas.DataFrame) -> tuple[str, ...]:
    """A note if rows are points along one training: their loss is above that of a training which ends there."""
    steps = next((name for name in table.columns if plain_name(name) in STEPS), None)
    size = next((size for size in SIZES.values() if size in runs), None)
    if steps is None or size is None or "D" not in runs or "name" not in runs or runs["name"].isna().any():
        return ()
    several = [str(name) for name, rows in runs.groupby("name") if rows[size].nunique() == 1 < rows["D"].nunique()]
    if not several:
        return ()
    others = " and others" if len(several) > 3 else ""
    return (
        f"{listed(several[:3])}{others} have rows at several values of {steps}: if these "
        "are points along one training, their losses are too high, as its learning rate has not come down yet",
    )


def _spoken(cells: Sequence[object], role: str) -> list[object]:
    """Empty cells as None. A seed that is written nan is a mistake."""
    return [None if empty(cell) and not (role == "seed" and cell is not None) else cell for cell in cells]


def _word(cell: object) -> str:
    return f"{cell:.0f}" if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _check_values(
    table: Table, column: str, role: str, values: np.ndarray, finished: Sequence[bool], unit: str
) -> None:
    """Numbers that no run can have are mistakes of the table; missing ones are left to admission."""
    for row, value in enumerate(values):
        cell = table.columns[column][row]
        text = cell.strip() if isinstance(cell, str) else f"{cell:g}" if isinstance(cell, float) else str(cell)
        where = f"{table.where}, row {row + 2}, column {column}"
        if role == "seed":
            if (
                cell is not None
                and not float(value).is_integer()
                and not (isinstance(cell, float) and math.isnan(cell))
            ):
                raise UserError(f"{where}: {text} is not a whole number")
        elif not finished[row] or math.isnan(value):
            continue
        elif role in ("N", "D", "C") and not (math.isfinite(value) and value > 0):
            raise UserError(f"{where}: {text} must be a positive number")
        elif role == "loss" and unit == "perplexity" and value <= 1:
            raise UserError(f"{where}: {text} is not a perplexity, which is above 1")
        elif role == "loss" and value <= 0:
            raise UserError(f"{where}: {text} must be positive, in {unit} per target unit")


def _counts(table: Table, columns: Columns, options: TableOptions) -> Counts:
    if options.counts is None:
        without = "N" not in columns.of and "N_without_embeddings" in columns.of
        return "parameters_without_embeddings" if without else "parameters"
    size = SIZES[options.counts]
    if size not in columns.of:
        raise UserError(
            f"{table.where} lacks the column {size} that --count wants; --column {size}=NAME says which it is"
        )
    return options.counts


def _families(table: Table, options: TableOptions) -> tuple[str, ...]:
    if not options.family:
        return ()
    for name in options.family:
        for row, cell in enumerate(table.columns[name]):
            if cell is None:  # "none" may be the name of one
                raise UserError(f"{table.where}, row {row + 2}, column {name}: is empty; --family {name} needs a value")
    rows = zip(*(table.columns[name] for name in options.family), strict=True)
    return tuple("/".join(_word(cell) for cell in row) for row in rows)


def _refuse_mixture(table: Table, options: TableOptions) -> None:
    """One law for runs of several families is the law of none."""
    for name, cells in table.columns.items():
        if name in options.family or name in options.columns.values() or plain_name(name) not in FAMILIES:
            continue
        values = _values(cells)
        if len(values) > 1:
            raise UserError(
                f"{table.where}: {name} has {len(values)} values ({listed(values)}), and one law would mix them; "
                f"add --family {name} for a law each, or --ignore {name} to mix them"
            )


def _values(cells: Sequence[object]) -> list[str]:
    return list(dict.fromkeys(_word(cell) for cell in cells if cell is not None))


def _remarks(table: Table, columns: Columns, options: TableOptions, counts: Counts) -> tuple[str, ...]:
    """Which columns were taken under another name, and which were not used at all, each once."""
    renamed = [f"{role} from {name}" for role, name in columns.of.items() if name != role]
    remarks = [f"columns: {', '.join(renamed)}"] if renamed else []
    passed = {name for names in columns.passed_over.values() for name in names}
    for role, names in columns.passed_over.items():
        way = f"--column {role}={names[0]}"
        remarks.append(f"{role} is {columns.of[role]}, not {' or '.join(names)} ({way} takes the other)")
    if counts == "parameters" and "N_without_embeddings" in columns.of:
        name = columns.of["N_without_embeddings"]
        remarks.append(f"N counts all parameters, not {name} (--count without-embeddings takes those)")
        passed.add(name)
    if counts == "parameters_without_embeddings" and "N" in columns.of:
        remarks.append(
            f"N counts {columns.of['N_without_embeddings']}, not {columns.of['N']} (--count all takes those)"
        )
    used = {*columns.of.values(), *options.family, *passed, *_flags(table)}
    unused = [_described(name, cells) for name, cells in table.columns.items() if name not in used]
    unused += [f"{name} (--ignore)" for name in options.ignore]
    if unused:
        remarks.append(f"not used: {', '.join(unused)}")
    return tuple(remarks)


def _described(name: str, cells: Sequence[object]) -> str:
    """The name, and how many values there are if they are a few words: such a column may divide the runs."""
    shown = name if name and not name.startswith("Unnamed: ") else "a column without a name"
    values = _values(cells)
    words = any(isinstance(cell, str) and not _is_number(cell) for cell in cells if not empty(cell))
    return f"{shown} ({plural(len(values), 'value')})" if words and 1 < len(values) <= MOST_VALUES else shown
