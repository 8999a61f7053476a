"""Reading a fitted law: what to train with a budget, and what a target loss costs."""

from __future__ import annotations

import math

import numpy as np

from reducible.tasks.errors import UserError
from reducible.tasks.fit.objective import Floats
from reducible.tasks.fit.result import Estimate, Fit, Law, Prediction, estimate

FAR = 100.0  # an extrapolation beyond this ratio gets a warning


def predict(fit: Fit, compute: float | None = None, loss: float | None = None) -> Prediction:
    """Compute-optimal N, D and loss for a budget, or N, D and compute for a target loss.

    Intervals come from the bootstrap draws; those of loss also hold the noise of one run, drawn from the residuals.
    Raises UserError without a law, at a target at or below E, or for a number that is not positive.
    """
    if (compute is None) == (loss is None):
        raise UserError("predict wants either a compute budget or a target loss, not both")
    law = fit.law
    if law is None:
        raise UserError(f"no law was fitted, so nothing can be predicted. {fit.health.verdict}")
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
    """Log residuals drawn with replacement, enlarged for the degrees of freedom that the fit spent."""
    residuals = np.array([run.residual for run in fit.used if run.residual is not None])
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
