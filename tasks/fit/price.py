"""What compute costs: a price per device-hour, and the FLOP/s that a device reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reducible.tasks.errors import UserError
from reducible.tasks.fit.result import Estimate, Fit, plain
from reducible.tasks.words import duration

LARGEST = 3  # runs of the largest sizes, whose speed is nearest to that of a larger model


@dataclass(frozen=True)
class Price:
    """The steps of a training alone: start-up, validation and idle devices come on top."""

    per_hour: float | None  # of one device; None: only the hours are known
    device_flops: float  # FLOP/s of one device
    measured: str  # where that is from

    def hours(self, compute: Estimate) -> Estimate:
        """Device-hours."""
        return _times(compute, 1 / (3600 * self.device_flops))

    def money(self, compute: Estimate) -> Estimate | None:
        return None if self.per_hour is None else _times(self.hours(compute), self.per_hour)

    def to_dict(self, compute: Estimate) -> dict[str, Any]:
        figures = {"device_flops": self.device_flops, "device_hours": plain(self.hours(compute))}
        money = self.money(compute)
        return figures if money is None else {**figures, "price": self.per_hour, "cost": plain(money)}

    def figure(self, compute: float) -> str:
        """The cost, or the device-hours without a price, for a table."""
        money = self.money(Estimate(compute))
        return f"{money.value:.3g}" if money else f"{self.hours(Estimate(compute)).value:.3g} device-hours"

    def text(self, compute: Estimate) -> str:
        """Two lines: what it costs, and what that rests on."""
        hours, money = self.hours(compute), self.money(compute)
        cost = "" if money is None else f"{money.short}, that is "
        at = "" if self.per_hour is None else f" at {self.per_hour:g}"
        return (
            f"cost      {cost}{hours.short} device-hours{at} ({duration(3600 * hours.value)} of one device)\n"
            f"          a device reaches {self.device_flops:.3g} FLOP/s, {self.measured}"
        )


def price_of(fit: Fit, per_hour: float | None, device_flops: float | None = None) -> Price | None:
    """The price of compute on the devices of the fit's runs, or on one that reaches `device_flops`.

    None: no price is asked for, and no run says how fast its devices were.

    Raises:
        UserError: a price is asked for, and neither the runs nor the caller say how fast a device is.
    """
    if device_flops is not None:
        return Price(per_hour, device_flops, "as given")
    measured = [(run.N, run.device_flops) for run in fit.used if run.device_flops]
    if not measured:
        if per_hour is None:
            return None
        raise UserError(
            "--price: these runs did not measure the speed of a device; add --device-flops, the FLOP/s that one "
            "reaches in training, such as 4e14"
        )
    largest = sorted(measured)[-LARGEST:]
    speed = float(np.median([flops for _, flops in largest]))
    return Price(per_hour, speed, f"the median of the {len(largest)} largest models")


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * end for end in (estimate.value, estimate.low, estimate.high)))
