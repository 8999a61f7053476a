"""A law in which N and D interact: both the scale of the data's term and its exponent change with N.

Farseer (Li et al. 2025, equation 3) writes L = exp(a3 N^c + b3) + exp(a2 N^b + b2) D^-exp(a1 N^a + b1), with nine
parameters and no irreducible loss, for its first term goes to 0. Here each exp(a N^p + b) is what it becomes at a
small p, a power of N, and the first term keeps its E:

    L(N, D) = E + A N^-alpha + B N^-rho D^-(beta N^-delta)

Seven parameters; rho = delta = 0 is Chinchilla's law. Both may be negative. Residuals of Chinchilla's law that have a
pattern over N at equal D ask for it, in a grid of many sizes and durations; a few runs cannot carry it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.laws.curved import CurvedProblem
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Floats, Problem, Range, all_of

SIGNED = Range(bounds=(-3.0, 3.0))
DRIFT = Range(bounds=(-0.5, 0.5))  # of the exponent with N


class Farseer(Form):
    """Reads N and D. Its frontier is searched."""

    name = "farseer"
    source = ("after Li et al. 2025", "https://arxiv.org/abs/2506.10972")
    meanings = {
        "A": "scale of what more parameters remove",
        "alpha": "how fast they remove it",
        "B": "scale of what more {units} remove",
        "beta": "how fast they remove it, at N = 1",
        "rho": "how fast the scale of the data's term falls with N",
        "delta": "how fast the exponent of the data's term falls with N",
    }

    @property
    def columns(self) -> tuple[str, ...]:
        return ("N", "D")

    @property
    def coefficients(self) -> tuple[str, ...]:
        return ("A", "B")

    @property
    def exponents(self) -> tuple[str, ...]:
        return ("alpha", "beta", "rho", "delta")

    def terms(self, written: Mapping[str, str]) -> tuple[str, ...]:
        return (
            written["E"],
            f"{written['A']} N^-{written['alpha']}",
            f"{written['B']} N^-{written['rho']} D^-({written['beta']}·N^-{written['delta']})",
        )

    def loss(self, theta: Floats, **columns: ArrayLike) -> Floats:
        log_N, log_D = (np.log(np.asarray(columns[name], dtype=float)) for name in self.columns)
        E, A, B, alpha, beta, rho, delta = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
        of_D = B * np.exp(-rho * log_N - beta * np.exp(-delta * log_N) * log_D)
        return E + A * np.exp(-alpha * log_N) + of_D

    def problem(self, columns: Mapping[str, Floats], loss: Floats, delta: float) -> Problem:
        x = np.stack([np.asarray(columns[name], dtype=float) for name in self.columns])
        return Interaction(
            x, np.asarray(loss, dtype=float), (0, 1), delta, given_ranges=(Range(), Range(), SIGNED, DRIFT)
        )


class Interaction(CurvedProblem):
    """x = (N, D). The solver's beta is the exponent at the centre of N, and its rho the slope of the data's term there.

    With z = log N/centre and Z = log D/centre, log(B N^-rho D^-k(N)) is log b - r z
    - beta ((e^(-delta z) - 1 + delta z) log centre_D + e^(-delta z) Z). In it delta bends at second order what r does
    at first, so that the two are told apart.
    """

    @property
    def exponents(self) -> int:
        return 4

    def scaled(self, raw: Floats) -> Floats:
        E, A, B, alpha, beta, rho, delta = np.moveaxis(np.array(raw, dtype=float), -1, 0)
        log_N, log_D = np.log(self.centre)
        at = beta * np.exp(-delta * log_N)
        a = A * np.exp(-alpha * log_N) / self.unit
        b = B * np.exp(-rho * log_N - at * log_D) / self.unit
        return np.stack([E / self.unit, a, b, alpha, at, rho - at * delta * log_D, delta], axis=-1)

    def raw(self, theta: Floats) -> Floats:
        E, a, b, alpha, at, slope, delta = np.moveaxis(np.array(theta, dtype=float), -1, 0)
        log_N, log_D = np.log(self.centre)
        rho = slope + at * delta * log_D
        A = a * self.unit * np.exp(alpha * log_N)
        B = b * self.unit * np.exp(rho * log_N + at * log_D)
        return np.stack([E * self.unit, A, B, alpha, at * np.exp(delta * log_N), rho, delta], axis=-1)

    def grid(self, points: int, near: bool = False) -> Floats:
        """Chinchilla's nodes, each with the interaction absent and of either sign."""
        first = [np.geomspace(*(of.near if near else of.starts), min(points, 6)) for of in self.ranges[:2]]
        axes = [*first, np.zeros(1), np.array([0.0, 0.03, -0.03])]
        return all_of(axes)

    def powers(self, exponents: Floats) -> Floats:
        z_N = self.z[0]
        alpha, beta, slope, delta = (exponents[:, i, None] for i in range(4))
        return np.stack([np.exp(-alpha * z_N), np.exp(self._exponent(beta, slope, delta)[0])], axis=1)

    def _exponent(self, beta: Floats, slope: Floats, delta: Floats) -> tuple[Floats, Floats, Floats]:
        """The logarithm of the data's term without b, and its derivatives by beta and by delta."""
        z_N, z_D = self.z
        log_D = np.log(self.centre[1])
        drift = np.exp(-delta * z_N)
        by_beta = -((drift - 1 + delta * z_N) * log_D + drift * z_D)
        by_delta = -beta * (z_N * (1 - drift) * log_D - z_N * drift * z_D)
        return -slope * z_N + beta * by_beta, by_beta, by_delta

    def formula(self, theta: Floats) -> tuple[Floats, Floats]:
        E, a, b, alpha, beta, slope, delta = (theta[:, i, None] for i in range(7))
        z_N = self.z[0]
        exponent, by_beta, by_delta = self._exponent(beta, slope, delta)
        power_N, power_D = np.exp(-alpha * z_N), np.exp(np.minimum(exponent, 500.0))
        of_N, of_D = a * power_N, b * power_D
        slopes = np.stack(
            [
                np.ones_like(of_N),
                power_N,
                power_D,
                -z_N * of_N,
                by_beta * of_D,
                -z_N * of_D,
                by_delta * of_D,
            ],
            axis=2,
        )
        return E + of_N + of_D, slopes


FARSEER = Farseer()
