"""What these runs say of E, in three levels with reasons, and what speaks against the law as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.carrying import Columns, count_cells, on_one_line
from reducible.tasks.fit.cost import Cost
from reducible.tasks.fit.next_run import most_telling
from reducible.tasks.fit.noise import OUTLIER
from reducible.tasks.fit.objective import Floats, Problem
from reducible.tasks.fit.result import Allocation, Estimate, Law, estimate
from reducible.tasks.fit.search import Optimum
from reducible.tasks.words import count, listed, number, percent, plural, power_of_ten, spelled

SPARE = 3  # cells beyond the parameters below which the intervals rest on hardly anything
SEPARABLE = 1e4  # condition number above which parameters can hardly be told apart
ANYWHERE = 100.0  # a factor between the ends of the interval of N*: wider, and it says nothing
WIDE = (
    0.5  # of the loss above E that the best run has left: a wider interval of E leaves the laws of both ends far apart
)
ROUGH = 0.03  # deviation of the log residuals beyond which the law describes nothing
BENT = 0.4  # share of the residuals' squares that a bend must explain, beyond being no chance
FLIPS = 4000
ALIKE = 0.05  # exponents of N* that are closer lead to the same runs


@dataclass(frozen=True)
class Verdict:
    """`sentence` names the level of E and why. `findings` speak against the law as a whole, gravest first."""

    identified: bool
    weak: bool
    sentence: str
    findings: tuple[str, ...]
    advice: str  # the run that would help most, or nothing


@dataclass(frozen=True)
class Evidence:
    """A fitted law and what it was fitted to: runs as columns of the form, C and loss."""

    columns: Columns
    C: Floats
    cell: NDArray[np.intp]
    problem: Problem
    optimum: Optimum
    law: Law
    cost: Cost
    sigma: float  # robust deviation of the log residuals
    shares: Allocation | None  # N* and D* as the law has them
    minima: Allocation | None  # as the minima of the budgets have them

    @cached_property
    def falls(self) -> bool:
        """Whether the fitted loss of the dearest third is below that of the cheapest by more than twice the noise."""
        order = np.argsort(self.C)
        third = max(1, len(order) // 3)
        cheap, dear = order[:third], order[-third:]
        if self.C[dear].max() < 2 * self.C[cheap].min():
            return True  # one budget shows nothing of it
        fitted = np.log(self.law.loss(**self.columns))
        return bool(fitted[cheap].min() - fitted[dear].min() > 2 * self.sigma)

    @cached_property
    def misfit(self) -> str:
        """Why the residuals are no noise, or nothing: too large, or a bend in them that chance would not make."""
        if self.sigma > ROUGH:
            return (
                f"the runs lie {percent(self.sigma)} from it. One loss, one data set and one family should be in the "
                "table, and the loss in nats"
            )
        bend, share, surely = _bend(self)
        if surely and share > BENT:
            return f"a bend along {bend} explains {percent(share)} of what is left between runs and law"
        return ""


def verdict(found: Evidence) -> Verdict:
    """The level of E, with the reason in words. A reason in the design comes before one in the data."""
    E, findings = found.law.E, tuple(_findings(found))
    if why_not := _not_identified(found):
        return Verdict(False, False, f"E is not identified by these runs: {why_not}", findings, _advice(found))
    span = f"[{E.low:.4g}, {E.high:.4g}]"
    if reasons := list(_weak(found)):
        sentence = f"E is weakly identified, it lies in {span}: {'; '.join(reasons)}"
        return Verdict(False, True, sentence, findings, _advice(found))
    if found.misfit:
        return Verdict(False, True, f"E is weakly identified, it lies in {span} if the law holds", findings, "")
    return Verdict(True, False, f"E lies in {span}", findings, "")


def gone(law: Law) -> list[str]:
    """Coefficients that are 0: their terms say nothing."""
    return [name for name in law.form.coefficients if law[name].value <= 0]


def _not_identified(found: Evidence) -> str:
    law, E = found.law, found.law.E
    if law.form.splits and on_one_line(found.columns):
        ratio = np.sort(found.columns["D"] / found.columns["N"])
        span = f"D/N from {ratio[0]:.3g} to {ratio[-1]:.3g}"
        terms = listed(list(law.form.coefficients))
        return f"N and D vary along one line only ({span}), so {terms} cannot be told apart; vary D at each N"
    if not found.falls:
        return "the loss does not fall with compute"
    if E.low <= 0 and math.isinf(E.high):
        return "its interval is open on both sides: any E fits them"
    if E.low <= 0:
        return f"E = 0 fits them within the noise (95 % interval [0, {E.high:.4g}])"
    if math.isinf(E.high):
        return f"its interval is open above (95 % from {E.low:.4g} up to the lowest loss)"
    return f"{without[0]} is 0 at the optimum" if (without := gone(law)) else ""


def _weak(found: Evidence) -> Iterator[str]:
    law, E, cells = found.law, found.law.E, count_cells(found.columns)
    left = float(law.loss(**found.columns).min()) - E.value
    if E.high - E.low > WIDE * left:
        yield f"that is {number((E.high - E.low) / left, 2)} times the loss above E that the best run has left"
    if (spare := cells - law.form.size) < SPARE:
        yield f"{plural(cells, 'run')} leave {spelled(spare)} beyond the {spelled(law.form.size)} parameters"
    if found.optimum.condition > SEPARABLE:
        yield f"the parameters can hardly be told apart (condition number {power_of_ten(found.optimum.condition, 1)})"
    if at_bound := _at_bound(found):
        yield f"{listed(at_bound)}, a bound"
    N = _next_size(found)
    if N is not None and N.high > ANYWHERE * N.low:
        yield f"N* at 10 times the compute may be anything from {count(N.low)} to {count(N.high)}"


def _findings(found: Evidence) -> Iterator[str]:
    """What is wrong with the law as a whole, whatever E is."""
    if not found.falls:
        fitted = found.law.loss(**found.columns)
        first, last = int(found.C.argmin()), int(found.C.argmax())
        yield (
            f"the loss does not fall with compute: the law has {number(float(fitted[first]))} at "
            f"{power_of_ten(float(found.C[first]))} FLOPs and {number(float(fitted[last]))} at "
            f"{power_of_ten(float(found.C[last]))}"
        )
    elif found.misfit:
        yield f"the form {found.law.form.formula} does not hold here: {found.misfit}"
    if found.falls and (two := _disagreement(found)):
        yield two
    for hit in _at_bound(found) if found.falls else ():
        yield f"{hit}, a bound: these runs do not show it"


def _bend(found: Evidence) -> tuple[str, float, bool]:
    """Squares and products of the log columns beside the law's own slopes, and what they explain of the residuals.

    -> the one that explains most, the share of the squares that all explain, and whether that is more than any of
    FLIPS tables of the same residuals with random signs have: noise that differs between runs is no bend.
    """
    count_of = np.bincount(found.cell)
    root = np.sqrt(count_of)
    residuals = found.problem.residuals(found.optimum.theta[None])[0]
    near = np.clip(residuals, -OUTLIER * found.sigma, OUTLIER * found.sigma)
    r = np.bincount(found.cell, near) / root
    first = np.unique(found.cell, return_index=True)[1]
    J = found.problem.jacobian(found.optimum.theta[None])[0][first] * root[:, None]
    logs = {f"log {name}": np.log(values[first]) for name, values in found.columns.items()}
    logs = {name: (x - x.mean()) / max(float(x.std()), 1e-12) for name, x in logs.items()}
    extra = {name: x * x * root for name, x in logs.items()}
    if len(logs) == 2:
        extra[" ".join(logs)] = np.prod(list(logs.values()), axis=0) * root
    if len(r) - J.shape[1] - len(extra) < SPARE:
        return "", 0.0, False
    slopes = np.linalg.qr(J)[0]
    beyond = np.linalg.qr(np.stack([_without(x, slopes) for x in extra.values()], axis=1))[0]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(FLIPS, len(r)))
    tables = _without(np.concatenate([r[None], r * signs]).T, slopes)
    shares = ((beyond.T @ tables) ** 2).sum(axis=0) / np.maximum((tables**2).sum(axis=0), 1e-300)
    alone = {name: abs(float(_without(x, slopes) @ tables[:, 0])) / np.linalg.norm(x) for name, x in extra.items()}
    return max(alone, key=lambda name: alone[name]), float(shares[0]), bool(shares[0] > shares[1:].max())


def _without(x: Floats, basis: Floats) -> Floats:
    rest: Floats = x - basis @ (basis.T @ x)
    return rest


def _disagreement(found: Evidence) -> str:
    law, minima = found.shares, found.minima
    if law is None or minima is None:
        return ""
    if not _apart(law.a, minima.a) or abs(law.a.value - minima.a.value) < ALIKE:
        return ""
    return (
        f"the two ways of reading N* disagree: N* ~ C^{law.a} by the law, C^{minima.a} by the minima of the budgets. "
        "The law's shape or the minima's windows are wrong; do not trust either beyond the runs"
    )


def _apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low


def _at_bound(found: Evidence) -> list[str]:
    first = 1 + len(found.law.form.coefficients)
    return [f"{found.law.form.parameters[i]} = {bound:g}" for i, bound in found.optimum.bound_hits if i >= first]


def _next_size(found: Evidence) -> Estimate | None:
    """N* at ten times the largest compute."""
    form, laws = found.law.form, np.concatenate([found.law.theta[None], found.law.table])
    if not form.splits or gone(found.law):
        return None
    with np.errstate(all="ignore"):
        N = form.optimal(laws, found.cost, 10 * float(found.C.max()))[0]
    return estimate(float(N[0]), N[1:]) if math.isfinite(N[0]) else None


def _advice(found: Evidence) -> str:
    if not found.falls or found.misfit:
        return ""  # another run of the same kind would not help
    best = most_telling(found.law.form, found.law.theta, found.columns, found.cost, found.C, max(found.sigma, 1e-6))
    if best is None:
        return ""
    N, D, left = best
    compute = float(found.cost.per_unit(N) * D)
    return (
        f"the run that would tell most about E: N = {count(N)}, D = {count(D)} ({power_of_ten(compute)} FLOPs); its "
        f"interval would be about {percent(1 - left)} narrower"
    )
