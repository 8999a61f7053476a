"""How N* and D* of a law grow with compute, as powers of C."""

from __future__ import annotations

import math

import numpy as np

from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Allocation, estimate


def allocation(form: Form, cost: Cost, law: Floats, draws: Floats, C_from: float, C_to: float) -> Allocation | None:
    """Exponents of N* and D* between two budgets, for the law and for each bootstrap draw; None without an optimum."""
    span = math.log(C_to / C_from)

    def lines(laws: Floats) -> Floats:
        first, last = (form.optimal(laws, cost, C) for C in (C_from, C_to))
        start = math.log(C_from)
        with np.errstate(all="ignore"):  # a draw without an optimum is not finite, and is left out below
            a, b = np.log(last[0] / first[0]) / span, np.log(last[1] / first[1]) / span
            return np.stack([a, b, np.log(first[0]) - a * start, np.log(first[1]) - b * start], axis=1)

    a, b, log_n, log_d = (float(v) for v in lines(law[None])[0])
    if not math.isfinite(a):
        return None
    table = lines(draws) if len(draws) else np.zeros((0, 4))
    table = table[np.isfinite(table).all(axis=1)]
    return Allocation(
        approach="law",
        a=estimate(a, table[:, 0]),
        b=estimate(b, table[:, 1]),
        n=math.exp(log_n),
        d=math.exp(log_d),
        draws=tuple(tuple(float(v) for v in row) for row in table),  # type: ignore[misc]
    )
