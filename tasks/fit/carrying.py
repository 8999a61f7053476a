"""What the places of the runs, before any loss is read, can carry: a law at all, and a split of compute."""

from __future__ import annotations

import numpy as np

from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Floats
from reducible.tasks.words import spelled

Columns = dict[str, Floats]
ONE_LINE = 0.2  # deviation of log D about its regression on log N below which D/N counts as not varied


def count_cells(columns: Columns) -> int:
    """Runs at distinct places: seeds of one (N, D) count once."""
    return len(np.unique(np.stack(list(columns.values()), axis=1), axis=0))


def too_few(form: Form, columns: Columns) -> str:
    """Why these runs cannot carry the form, or nothing."""
    cells = count_cells(columns)
    if cells < form.size + 1:
        return (
            f"{cells} runs at distinct {form.variables} cannot carry {spelled(form.size)} parameters "
            f"(at least {form.size + 1}, better {3 * form.size})"
        )
    for name, values in columns.items():
        if (distinct := len(np.unique(values))) < 3:
            return f"{distinct} distinct {name} cannot show how loss falls with {name} (3 at least)"
    return form.lacks(columns)


def on_one_line(columns: Columns) -> bool:
    """Whether D is nearly a power of N: fixed tokens per parameter, or a single budget."""
    x, y = np.log(columns["N"]), np.log(columns["D"])
    return float((y - np.polyval(np.polyfit(x, y, 1), x)).std()) < ONE_LINE
