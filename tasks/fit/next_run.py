"""The run that would tell most about E, from how the law bends at its parameters."""

from __future__ import annotations

import itertools
import math

import numpy as np

from reducible.tasks.fit.carrying import Columns
from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.objective import Floats

BEYOND = 4.0  # how far beyond the sizes and durations of the runs a new one may lie
PLACES = 14  # sizes and durations that are tried
SURELY = (1.0, 20.0, 1.0)  # prior deviations: E in units of the loss, log coefficients, exponents


def slopes(form: Form, theta: Floats, columns: Columns) -> Floats:
    """(runs, size) derivatives of the log loss by E over the mean loss, the log coefficients and the exponents."""
    unit = float(np.mean(form.loss(theta, **columns)))
    found = []
    for i in range(form.size):
        step = np.zeros(form.size)
        linear = 0 < i <= len(form.coefficients)
        step[i] = 1e-5 * (unit if i == 0 else abs(float(theta[i])) if linear else 1.0)
        up, down = form.loss(theta + step, **columns), form.loss(theta - step, **columns)
        found.append((np.log(up) - np.log(down)) / 2e-5)
    return np.stack(found, axis=-1)


def covariance(form: Form, theta: Floats, columns: Columns, noise: float) -> Floats:
    """(size, size) covariance of the parameters as `slopes` scales them, of runs with this noise (log loss).

    To first order, under a wide prior, without which runs that cannot tell two parameters apart have none.
    """
    J = slopes(form, theta, columns) / noise
    exponents = form.size - 1 - len(form.coefficients)
    prior = np.r_[SURELY[0], [SURELY[1]] * len(form.coefficients), [SURELY[2]] * exponents]
    inverse: Floats = np.linalg.inv(J.T @ J + np.diag(prior**-2.0)).astype(np.float64)
    return inverse


def most_telling(
    form: Form, theta: Floats, columns: Columns, cost: Cost, C: Floats, noise: float
) -> tuple[float, float, float] | None:
    """N and D of the run, no dearer than the dearest of C, after which E is known best; E's deviation over today's.

    None for a form that reads more than N, D and C, or if no run helps.
    """
    if not {"N", "D"} <= set(columns) <= {"N", "D", "C"}:
        return None
    N, D = (np.geomspace(columns[name].min() / BEYOND, columns[name].max() * BEYOND, PLACES) for name in ("N", "D"))
    places = np.array([(n, d) for n, d in itertools.product(N, D) if cost.per_unit(n) * d <= 1.05 * float(C.max())])
    if not len(places):
        return None
    tried = {"N": places[:, 0], "D": places[:, 1], "C": cost.per_unit(places[:, 0]) * places[:, 1]}
    now = covariance(form, theta, columns, noise)
    g = slopes(form, theta, {name: tried[name] for name in columns})
    # One more run of slope g takes (S g)_E^2 / (noise^2 + g' S g) from the variance of E.
    gain = (g @ now)[:, 0] ** 2 / (noise**2 + np.einsum("ki,ij,kj->k", g, now, g))
    best = int(gain.argmax())
    left = math.sqrt(max(0.0, 1 - float(gain[best]) / float(now[0, 0])))
    return (float(places[best, 0]), float(places[best, 1]), left) if left < 0.99 else None
