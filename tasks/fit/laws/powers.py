"""Forms that are E and a sum of powers: the formula as data, read by the solver, by `loss` and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Floats, Problem, Range


@dataclass(frozen=True)
class Power:
    """coefficient column^-exponent, each by name."""

    coefficient: str
    column: str
    exponent: str


@dataclass(frozen=True)
class SumOfPowers(Form):
    """loss = E + the sum of its powers, which may share exponents or columns."""

    name: str
    powers: tuple[Power, ...]
    meanings: Mapping[str, str]
    source: tuple[str, str]
    ranges: Mapping[str, Range] = field(default_factory=dict)  # of exponents that need another than the default

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(power.column for power in self.powers))

    @property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(power.coefficient for power in self.powers)

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(power.exponent for power in self.powers))

    def variables_of(self, columns: Mapping[str, ArrayLike]) -> Mapping[str, Floats]:
        """What the powers are of, by name: the columns themselves, unless a form makes others of them."""
        return {name: np.asarray(columns[name], dtype=float) for name in self.columns}

    def loss(self, theta: Floats, **columns: ArrayLike) -> Floats:
        at = {name: i for i, name in enumerate(self.parameters)}
        of = self.variables_of(columns)
        total = theta[..., 0]
        for power in self.powers:
            x = of[power.column]
            total = total + theta[..., at[power.coefficient]] * x ** -theta[..., at[power.exponent]]
        return total

    def problem(self, columns: Mapping[str, Floats], loss: Floats, delta: float) -> Problem:
        of = self.variables_of(columns)
        x = np.stack([of[power.column] for power in self.powers])
        exponent_of = tuple(self.exponents.index(power.exponent) for power in self.powers)
        ranges = tuple(self.ranges.get(name, Range()) for name in self.exponents)
        return Problem(x, np.asarray(loss, dtype=float), exponent_of, delta, given_ranges=ranges)

    def terms(self, written: Mapping[str, str]) -> tuple[str, ...]:
        powers = (f"{written[p.coefficient]} {p.column}^-{written[p.exponent]}" for p in self.powers)
        return (written["E"], *powers)
