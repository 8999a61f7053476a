"""The effective compute multiplier of a variant: how many times its compute the base needs for the same loss.

Two groups of runs share E and the exponents and have coefficients of their own, L = E + A_g N^-alpha + B_g D^-beta.
Then the best loss of one at C is that of the other at m C, with one m for all C if both pay the same FLOPs per unit:
m = (A_base / A_variant)^(1/alpha) (B_base / B_variant)^(1/beta), effective parameters times effective data.

Whether one E and one set of exponents suit both is tested against a law each. If they do not, m depends on compute,
and is read off the two laws at both ends of the compute that both were given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.special import fdtrc

from reducible.tasks.fit.best_loss import BestLoss, best_loss
from reducible.tasks.fit.bootstrap import EFFICIENT, cells_of, law_draws
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.powers import SumOfPowers
from reducible.tasks.fit.noise import deviation, huber_scale
from reducible.tasks.fit.objective import Problem, minimise
from reducible.tasks.fit.result import Estimate, Fit, Floats, estimate
from reducible.tasks.fit.search import Optimum, search

LEVEL = 0.05  # one set of exponents that is less probable than this contradicts the runs
KNOWN, CONTRADICTED, UNKNOWN = "known", "contradicted", "cannot tell"


@dataclass(frozen=True)
class At:
    """The multiplier at one compute of the variant."""

    compute: float
    factor: Estimate


@dataclass(frozen=True)
class Multiplier:
    """What the runs say of a variant's compute: the base needs `factor` times as much for the same loss."""

    base: str
    variant: str
    verdict: str  # KNOWN, CONTRADICTED or UNKNOWN
    sentence: str
    factor: Estimate | None = None  # with one E and one set of exponents
    at: float | None = None  # FLOPs of the variant at which it is read; it is the same everywhere if the costs are
    probability: float = math.nan  # of a difference at least so large if one E and one set of exponents suit both
    ends: tuple[At, ...] = ()  # from a law each, at the smallest and largest compute that both were given


@dataclass(frozen=True)
class Grouped(Problem):
    """Runs of several groups: each term belongs to one of them, E and the exponents to all."""

    member: Floats | None = None  # (terms, n): 1 where the run is of the term's group

    def powers(self, exponents: Floats) -> Floats:
        assert self.member is not None
        return super().powers(exponents) * self.member


def multiplier(base: str, variant: str, fits: tuple[Fit, Fit]) -> Multiplier:
    """fits: of the base and of the variant, on the same data with C from one ledger."""
    pair = base, variant
    if reason := _reason(pair, fits):
        return Multiplier(base, variant, UNKNOWN, f"the compute multiplier of {variant} over {base}: {reason}")
    ranges = [(min(run.C for run in fit.used), fit.largest_compute) for fit in fits]
    tested = max(low for low, _ in ranges), min(high for _, high in ranges)
    at = tested[1] if tested[0] < tested[1] else ranges[1][1]
    problem, cells = _together(fits)
    optimum = search(problem)
    options = fits[0].options
    draws = law_draws(problem, optimum, cells, options["bootstrap"], options["seed"])
    rows = _factors(fits, np.concatenate([optimum.raw[None], draws]), at)
    factor = estimate(float(rows[0]), rows[1:])
    if not math.isfinite(factor.value):
        reason = "the law of both has no best size there"
        return Multiplier(base, variant, UNKNOWN, f"the compute multiplier of {variant} over {base}: {reason}")
    probability = _probability(fits, problem, optimum, cells)
    ends = tuple(_ends(fits, tested)) if tested[0] < tested[1] else ()
    contradicted = probability < LEVEL
    tells = factor.low > 1 or factor.high < 1
    verdict = CONTRADICTED if contradicted else KNOWN if tells else UNKNOWN
    found = Multiplier(base, variant, verdict, "", factor, at, probability, ends)
    return replace(found, sentence=_sentence(found))


def _reason(names: tuple[str, str], fits: tuple[Fit, Fit]) -> str:
    """Why there is no multiplier; empty if there may be one."""
    for name, fit in zip(names, fits, strict=True):
        if fit.law is None:
            return f"no law for {name}. {fit.health.verdict}"
        if fit.law.form.splits and not fit.health.splits:
            return f"the law of {name} has no best size. {fit.health.verdict}"
        if not isinstance(fit.form, SumOfPowers):
            return f"the form {fit.form.name} is no sum of powers, whose coefficients could differ alone"
    if fits[0].form.name != fits[1].form.name:
        return f"{names[0]} has the form {fits[0].form.name} and {names[1]} {fits[1].form.name}; fit both with one"
    if any((run.weight is None) != (fits[0].used[0].weight is None) for fit in fits for run in fit.used):
        return "the runs of one have weights and those of the other have none"
    return ""


def _columns(fit: Fit) -> tuple[dict[str, Floats], Floats]:
    columns = {name: np.array([getattr(run, name) for run in fit.used], dtype=float) for name in fit.form.columns}
    return columns, np.array([run.loss for run in fit.used])


def _problem(fit: Fit) -> Problem:
    options = FitOptions.model_validate(fit.options)
    weights = [run.weight for run in fit.used]
    weight = None if None in weights else np.array(weights, dtype=float)
    return options.posed(fit.form.problem(*_columns(fit), options.delta), weight)


def _together(fits: tuple[Fit, Fit]) -> tuple[Grouped, Any]:
    """The runs of both as one problem, and the cell of each run."""
    alone = [_problem(fit) for fit in fits]
    terms, sizes = alone[0].terms, [problem.loss.size for problem in alone]
    # Outside its group a term's column is at its centre, so that it moves neither the scale nor the spread.
    x = np.concatenate(
        [
            np.concatenate(
                [
                    problem.x if here is problem else np.repeat(here.centre[:, None], problem.loss.size, axis=1)
                    for problem in alone
                ],
                axis=1,
            )
            for here in alone
        ]
    )
    member = np.kron(np.eye(2), np.ones((terms, 1)))[:, np.repeat([0, 1], sizes)].astype(np.float64)
    settings = {field.name: getattr(alone[0], field.name) for field in fields(Problem)}
    settings |= {
        "x": x,
        "loss": np.concatenate([problem.loss for problem in alone]),
        "exponent_of": alone[0].exponent_of * 2,
        "given_ranges": alone[0].ranges,
    }
    weights = [problem.weight for problem in alone]
    if weights[0] is not None and weights[1] is not None:
        settings["weight"] = np.concatenate([weights[0], weights[1]])
    of_group = np.repeat([0.0, 1.0], sizes)
    columns = [_columns(fit)[0] for fit in fits]
    cells = cells_of(of_group, *(np.concatenate([one[name] for one in columns]) for name in columns[0]))
    return Grouped(**settings, member=member), cells


def _factors(fits: tuple[Fit, Fit], raw: Floats, compute: float) -> Floats:
    """The multiplier by each row of common parameters (E, coefficients of the base, of the variant, exponents)."""
    form: Form = fits[0].form
    k = len(form.coefficients)
    E, exponents = raw[:, :1], raw[:, 1 + 2 * k :]
    base, variant = (np.concatenate([E, raw[:, 1 + g * k : 1 + (g + 1) * k], exponents], axis=1) for g in (0, 1))
    loss = form.optimal(variant, fits[1].cost, compute)[2]
    found: Floats = form.required(base, fits[0].cost, loss)[2] / compute
    return found


def _probability(fits: tuple[Fit, Fit], problem: Grouped, optimum: Optimum, cells: Any) -> float:
    """Of so large a difference between one law with common E and exponents and a law each, if there is one law.

    The test is the profile's, for M-estimators. Huber's delta is widened to 1.345 deviations: at 1e-3 the objective is
    nearly that of least absolute values, whose differences have another distribution with so few runs.
    """
    alone, own = [_problem(fit) for fit in fits], []
    theta = [one.scaled(fit.law.theta)[None] for one, fit in zip(alone, fits, strict=True) if fit.law is not None]
    freedom = int(cells.max()) + 1 - sum(one.size for one in alone)
    if freedom < 1:
        return math.nan
    residuals = np.concatenate([one.residuals(at)[0] for one, at in zip(alone, theta, strict=True)])
    sigma = max(deviation(residuals, sum(one.size for one in alone)), 1e-9)
    delta = max(problem.delta, EFFICIENT * sigma)
    for one, at in zip(alone, theta, strict=True):
        rest = minimise(replace(one, delta=delta), at, np.ones((1, one.loss.size)), iterations=500)
        own.append(float(rest.objective[0]))
    wide = replace(problem, delta=delta)
    # From the common optimum, and from where each law alone would start it.
    starts = np.stack([optimum.theta, *(_started(fits, problem, which) for which in (0, 1))])
    rest = minimise(wide, starts, np.ones((len(starts), wide.loss.size)), iterations=500)
    worse = max(float(rest.objective.min()) - sum(own), 0.0)
    shared = sum(one.size for one in alone) - problem.size
    ratio = 2 * worse / huber_scale(delta, sigma, problem.above)
    return float(fdtrc(shared, freedom, ratio / shared))


def _started(fits: tuple[Fit, Fit], problem: Grouped, which: int) -> Floats:
    """The law of one group as a start for both."""
    law = fits[which].law
    assert law is not None
    k = len(law.form.coefficients)
    theta = law.theta
    return problem.scaled(np.concatenate([theta[:1], theta[1 : 1 + k], theta[1 : 1 + k], theta[1 + k :]]))


def _ends(fits: tuple[Fit, Fit], tested: tuple[float, float]) -> list[At]:
    """The multiplier at both ends of the tested compute, from a law each."""
    bests = [best_loss(fit) for fit in fits]
    if bests[0] is None or bests[1] is None:
        return []
    return [At(C, _own_factor(bests[0], bests[1], C)) for C in tested]


def _own_factor(base: BestLoss, variant: BestLoss, compute: float) -> Estimate:
    many = min(len(base.E_rows), len(variant.E_rows))
    # The draws of two fits are independent; both begin from one seed, so one is shuffled (overtaking.loss_tables).
    order = np.r_[0, 1 + np.random.default_rng(0).permutation(len(variant.E_rows) - 1)][:many]
    loss = variant.loss_rows(compute)[0][order]
    first = np.arange(len(base.E_rows)) < many
    reducible = np.zeros(len(base.E_rows))
    reducible[first] = loss - base.E_rows[first]
    with np.errstate(all="ignore"):
        rows = np.where(reducible > 0, base.compute_rows(np.maximum(reducible, 1e-300)), np.inf)[first] / compute
    return estimate(float(rows[0]), rows[1:])


def _sentence(found: Multiplier) -> str:
    assert found.factor is not None
    base, variant = found.base, found.variant
    shared = f"(one E and one set of exponents; p = {found.probability:.2g})"
    if math.isnan(found.probability):
        shared = "(one E and one set of exponents, which so few runs cannot test)"
    if found.verdict == CONTRADICTED:
        ends = " and ".join(f"{_times(end.factor)} at {end.compute:.3g} FLOPs" for end in found.ends)
        return (
            f"{base} and {variant} do not share one E and one set of exponents (p = {found.probability:.2g}), so no "
            f"single multiplier holds: by a law each, the compute of {variant} counts {ends or 'differently'}"
        )
    if found.verdict == UNKNOWN:
        return (
            f"whether {variant} saves compute over {base}, these runs cannot tell: its compute counts "
            f"{_times(found.factor)} {shared}"
        )
    return f"the compute of {variant} counts {_times(found.factor)} that of {base} {shared}"


def _times(factor: Estimate) -> str:
    if math.isinf(factor.value):
        return "without limit"
    high = "open" if math.isinf(factor.high) else f"{factor.high:.3g}"
    return f"{factor.value:.3g} [{factor.low:.3g}, {high}] times"
