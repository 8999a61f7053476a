"""Reading a fitted law: what to train with a budget, and what a target loss costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reducible.tasks.errors import UserError
from reducible.tasks.fit.laws.form import SIZES
from reducible.tasks.fit.noise import far
from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Estimate, Fit, Law, Prediction, estimate, plain

FAR = 100.0  # an extrapolation beyond this ratio gets a warning
NEAR_LINE = 0.4  # how far log D may be from the line along which the runs vary: two deviations of such a design


@dataclass(frozen=True)
class ModelPrediction:
    """What training a model of N parameters on D units comes to; intervals as of a Prediction."""

    N: float
    D: float
    compute: float  # by the cost of the fit's runs
    ratio: float  # compute / largest compute of a used run
    loss: Estimate
    reducible: Estimate  # loss - E
    best: Prediction | None  # at the same compute; None if these runs cannot say how to split it
    penalty: Estimate | None  # expected loss - best loss at the same compute
    waste: Estimate | None  # compute / the compute with which the best model reaches the same expected loss
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        return content


def predict(fit: Fit, compute: float | None = None, loss: float | None = None) -> Prediction:
    """Compute-optimal N, D and loss for a budget, or N, D and compute for a target loss.

    Intervals come from the bootstrap draws; those of loss also hold the noise of one run, drawn from the residuals.
    Raises UserError without a law, at a target at or below E, or for a number that is not positive.
    """
    if (compute is None) == (loss is None):
        raise UserError("predict wants either a compute budget or a target loss, not both")
    law = _law_of(fit)
    asked = compute if compute is not None else loss
    if asked is None or not math.isfinite(asked) or asked <= 0:
        raise UserError(f"{'compute' if loss is None else 'loss'} must be a positive number, not {asked}")
    best = law.theta[None]
    if law.form.splits and not fit.health.splits:
        raise UserError(f"these runs cannot say how to split compute between N and D. {fit.health.verdict}")
    draws = law.table
    noise = _noise(fit, law.form.size, len(draws))
    if compute is not None:
        return _for_compute(fit, law, best, draws, noise, compute)
    assert loss is not None
    return _for_loss(fit, law, best, draws, noise, loss)


@dataclass(frozen=True)
class Gain:
    """What `factor` times the compute gains, at the best N and D of both."""

    factor: float
    before: Prediction
    after: Prediction
    difference: Estimate  # expected loss before - expected loss after
    share: Estimate  # of the reducible loss before

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        return content


def gain(fit: Fit, factor: float, compute: float | None = None) -> Gain:
    """The best loss at `compute` FLOPs (default: those of the largest run) beside that at `factor` times as many.

    Raises UserError as `predict`, and for a factor that is not above 1.
    """
    if not (math.isfinite(factor) and factor > 1):
        raise UserError(f"a gain is from more compute: the factor must be a number above 1, not {factor:g}")
    law = _law_of(fit)
    start = fit.largest_compute if compute is None else compute
    before, after = predict(fit, compute=start), predict(fit, compute=factor * start)
    rows = np.concatenate([law.theta[None], law.table])
    first, second = (law.form.optimal(rows, fit.cost, C)[2] for C in (start, factor * start))
    with np.errstate(all="ignore"):  # a draw may have no reducible loss left
        share = (first - second) / (first - rows[:, 0])
    return Gain(
        factor=factor,
        before=before,
        after=after,
        difference=estimate(float(first[0] - second[0]), (first - second)[1:]),
        share=estimate(float(share[0]), share[1:]),
    )


def model_within(fit: Fit, compute: float, N: float | None = None, D: float | None = None) -> tuple[float, float]:
    """N and D of the model that `compute` FLOPs train, by the cost of the fit's runs, if one of them is given.

    Raises UserError if no size costs so much per unit.
    """
    if N is not None:
        return N, float(fit.cost.units(N, compute))
    assert D is not None
    low, high = max(SIZES[0], fit.cost.smallest), SIZES[1]
    for _ in range(80):
        middle = (low + high) / 2
        dear = float(fit.cost.per_unit(math.exp(middle))) * D > compute
        low, high = (low, middle) if dear else (middle, high)
    size = math.exp((low + high) / 2)
    if not math.isclose(float(fit.cost.per_unit(size)) * D, compute, rel_tol=1e-6):
        raise UserError(f"no model can be trained on D = {D:g} with {compute:g} FLOPs; give less data or more compute")
    return size, D


def predict_model(fit: Fit, N: float, D: float) -> ModelPrediction:
    """The loss of a model of N parameters trained on D units, and the price of not being the best at its compute.

    Raises UserError without a law, for a number that is not positive, for a form that needs more than N and D, and,
    if all runs lie along one line of (N, D), for a model that does not.
    """
    law = _law_of(fit)
    for name, value in (("N", N), ("D", D)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be a positive number, not {value}")
    compute = float(fit.cost.per_unit(N) * D)
    at = {"N": N, "D": D, "C": compute}
    if unknown := [column for column in law.form.columns if column not in at]:
        raise UserError(f"the law {law.form.formula} needs {unknown[0]} as well, so N and D do not tell its loss")
    columns = {column: at[column] for column in law.form.columns}
    splits = not law.form.splits or fit.health.splits
    if not splits and _off_the_line(fit, N, D):
        raise UserError(f"these runs say nothing of N = {N:g} with D = {D:g}. {fit.health.verdict}")
    draws = law.table
    loss, losses = float(law.loss(**columns)), law.form.loss(draws, **columns)
    best = penalty = waste = None
    if law.form.splits and splits:
        best = predict(fit, compute=compute)
        penalty = estimate(loss - best.loss.value, losses - law.form.optimal(draws, fit.cost, compute)[2])
        needed = float(law.form.required(law.theta[None], fit.cost, np.array([loss]))[2][0])
        waste = estimate(compute / needed, compute / law.form.required(draws, fit.cost, losses)[2])
    noisy = losses * np.exp(_noise(fit, law.form.size, len(draws)))
    return ModelPrediction(
        N=N,
        D=D,
        compute=compute,
        ratio=compute / fit.largest_compute,
        loss=estimate(loss, noisy),
        reducible=estimate(loss - law.E.value, losses - draws[:, 0]),
        best=best,
        penalty=penalty,
        waste=waste,
        warnings=_warnings(fit, compute),
    )


def _law_of(fit: Fit) -> Law:
    if fit.law is None:
        raise UserError(f"no law was fitted, so nothing can be predicted. {fit.health.verdict}")
    return fit.law


def _off_the_line(fit: Fit, N: float, D: float) -> bool:
    x, y = (np.log([getattr(run, column) for run in fit.used]) for column in ("N", "D"))
    if len(np.unique(x)) < 2:
        return True
    return abs(math.log(D) - float(np.polyval(np.polyfit(x, y, 1), math.log(N)))) > NEAR_LINE


def _for_compute(fit: Fit, law: Law, best: Floats, draws: Floats, noise: Floats, compute: float) -> Prediction:
    N, D, loss = (float(v[0]) for v in law.form.optimal(best, fit.cost, compute))
    if math.isnan(loss):
        raise UserError(f"the law {law.form.formula} has no best size at {compute:g} FLOPs")
    N_draws, D_draws, loss_draws = law.form.optimal(draws, fit.cost, compute)
    return Prediction(
        compute=Estimate(compute, compute, compute),
        N=estimate(N, N_draws),
        D=estimate(D, D_draws),
        loss=estimate(loss, loss_draws * np.exp(noise)),
        reducible=estimate(loss - law.E.value, loss_draws - draws[:, 0]),
        ratio=compute / fit.largest_compute,
        warnings=_warnings(fit, compute),
    )


def _for_loss(fit: Fit, law: Law, best: Floats, draws: Floats, noise: Floats, loss: float) -> Prediction:
    if loss <= law.E.value:
        raise UserError(
            f"loss {loss:g} is at or below the irreducible loss E = {law.E}: no compute reaches it. "
            f"Ask for more than {law.E.value:.4g}"
        )
    N, D, compute = (float(v[0]) for v in law.form.required(best, fit.cost, np.array([loss])))
    if not math.isfinite(compute) or N >= 1e19:
        raise UserError(f"loss {loss:g} is so close to E = {law.E} that no finite compute can be named")
    # A run's loss is the law's plus noise, so the law must reach the target less the noise. If a draw's E is above
    # that, its compute is infinite.
    N_draws, D_draws, C_draws = law.form.required(draws, fit.cost, loss * np.exp(-noise))
    warnings = _warnings(fit, compute)
    beyond = float(np.mean(np.isinf(C_draws))) if len(C_draws) else 0.0
    if beyond > 0.025:
        warnings += (f"{100 * beyond:.0f} % of the bootstrap draws have E above {loss:g}: it may be out of reach",)
    return Prediction(
        compute=estimate(compute, C_draws),
        N=estimate(N, N_draws),
        D=estimate(D, D_draws),
        loss=Estimate(loss, loss, loss),
        reducible=estimate(loss - law.E.value, loss - draws[:, 0]),
        ratio=compute / fit.largest_compute,
        warnings=warnings,
    )


def _noise(fit: Fit, parameters: int, draws: int) -> Floats:
    """Log residuals drawn with replacement, enlarged for the degrees of freedom that the fit spent.

    Without those that the fit names as far from the law: one in thirty would be more than the upper 2.5 %.
    """
    residuals = np.array([run.residual for run in fit.used if run.residual is not None])
    near = ~far(residuals, fit.health.residual_deviation)
    residuals = residuals[near] if near.sum() > parameters else residuals
    freedom = max(1, len(residuals) - parameters)
    rng = np.random.default_rng(1)
    return rng.choice(residuals, size=draws) * math.sqrt(len(residuals) / freedom)


def _warnings(fit: Fit, compute: float) -> tuple[str, ...]:
    lines: tuple[str, ...] = ()
    if not fit.health.identified:
        lines += (fit.health.verdict,)
    ratio = compute / fit.largest_compute
    if ratio > FAR:
        lines += (f"{ratio:.3g} times the largest run: far beyond what back-tests of this fit can support",)
    return lines
