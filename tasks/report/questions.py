"""What people ask of a law, as tables: the gain of more compute, how large, how long, what a loss or a size costs."""

from __future__ import annotations

from dataclasses import dataclass

from reducible.tasks.errors import UserError
from reducible.tasks.fit.best_loss import BestLoss
from reducible.tasks.fit.predict import Gain, ModelPrediction, gain, model_within, predict, predict_model
from reducible.tasks.fit.price import Price, price_of
from reducible.tasks.fit.result import Estimate, Fit, Prediction
from reducible.tasks.report.report_spec import ReportSpec

TIMES = (1.0, 3.0, 10.0, 30.0, 100.0)  # the compute of the largest run
LESS = (0.1, 0.25, 0.5)  # shares of the reducible loss that are to go
OFF = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # the best size
FACTOR = 10.0  # of the gain, and of the budget that a model is off the optimum of


@dataclass(frozen=True)
class Costed:
    """A prediction, and what its compute costs on the devices of the runs."""

    prediction: Prediction
    hours: Estimate | None  # of a device
    money: Estimate | None


@dataclass(frozen=True)
class Target:
    """A share of the reducible loss at the largest run that is to go, and what that takes."""

    less: float
    costed: Costed


@dataclass(frozen=True)
class Off:
    """A model of `times` the best size, at the same compute."""

    times: float
    model: ModelPrediction


@dataclass(frozen=True)
class Questions:
    """Empty tables where the runs do not say."""

    gain: Gain | None
    sizes: tuple[Costed, ...]
    targets: tuple[Target, ...]
    off: tuple[Off, ...]
    price: Price | None
    no_price: str  # why there is none, although one is set


def questions(fit: Fit, best: BestLoss | None, spec: ReportSpec) -> Questions:
    """best: of the same fit."""
    price, no_price = None, ""
    try:
        price = price_of(fit, spec.price, spec.device_flops)
    except UserError as error:
        no_price = str(error).removeprefix("--price: ")
    if fit.law is None or best is None or best.source != "law" or not fit.used:
        return Questions(None, (), (), (), price, no_price)
    largest = fit.largest_compute
    at_largest = float(best.reducible(largest)[0])
    sizes = [_asked(fit, price, compute=times * largest) for times in TIMES]
    targets = [(less, _asked(fit, price, loss=best.E.value + (1 - less) * at_largest)) for less in LESS]
    return Questions(
        gain=_gain(fit),
        sizes=tuple(one for one in sizes if one),
        targets=tuple(Target(less, one) for less, one in targets if one),
        off=_off(fit, FACTOR * largest),
        price=price,
        no_price=no_price,
    )


def _asked(fit: Fit, price: Price | None, compute: float | None = None, loss: float | None = None) -> Costed | None:
    try:
        found = predict(fit, compute=compute, loss=loss)
    except UserError:  # no best size, or no compute reaches it: the table has no such row
        return None
    if price is None:
        return Costed(found, None, None)
    return Costed(found, price.hours(found.compute), price.money(found.compute))


def _gain(fit: Fit) -> Gain | None:
    try:
        return gain(fit, FACTOR)
    except UserError:
        return None


def _off(fit: Fit, compute: float) -> tuple[Off, ...]:
    try:
        best = predict(fit, compute=compute)
        if not best.splits:
            return ()
        sizes = [(times, model_within(fit, compute, N=times * best.N.value)) for times in OFF]
        return tuple(Off(times, predict_model(fit, N, D)) for times, (N, D) in sizes)
    except UserError:
        return ()
