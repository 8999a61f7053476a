"""A test of whether all families share one irreducible loss: the data have one entropy, but each fit has its own E.

The E of a family is the data's entropy plus what that family cannot express at any size: a shorter memory, a bound in
place of a likelihood. So each E is given with its own interval, and the profiles of all fits are added up. The lowest
point of the sum is the E that suits them together. How much worse it is than each fit with its own E is a
likelihood-ratio test of whether there is one E at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, chdtri

from reducible.tasks.fit.result import Estimate, Fit, Floats, ProfileOfE

LEVEL = 0.05  # a common E that is less probable than this contradicts the fits
POINTS = 4001


@dataclass(frozen=True)
class SharedE:
    """E in nats per target unit. `shared` is None if fewer than two families have a profile of E."""

    own: dict[str, Estimate]
    shared: Estimate | None
    known: bool  # whether the common E has two ends
    probability: float  # of a disagreement at least so large if there is one E
    contradict: bool
    sentence: str


def shared_E(fits: Mapping[str, Fit]) -> SharedE:
    """The E that suits all fits together, by the sum of their profiles."""
    profiles = {name: fit.profile for name, fit in fits.items() if fit.law is not None and fit.profile is not None}
    own = {name: profile.interval for name, profile in profiles.items()}
    if len(profiles) < 2:
        return SharedE(
            own, None, False, math.nan, False, "Fewer than two families have a law, so their E cannot be compared"
        )
    top = min(max(profile.E) for profile in profiles.values())  # above the lowest loss of a family there is no E
    E = np.linspace(0.0, top, POINTS)
    E = np.unique(np.r_[E, [profile.interval.value for profile in profiles.values() if profile.interval.value <= top]])
    ratio = np.sum([_likelihood_ratio(profile, E) for profile in profiles.values()], axis=0)
    best = int(ratio.argmin())
    probability = float(chdtrc(len(profiles) - 1, ratio[best]))
    inside = E[ratio <= ratio[best] + chdtri(1, LEVEL)]
    high = math.inf if inside[-1] >= 0.999 * top else float(inside[-1])
    shared = Estimate(float(E[best]), float(inside[0]), high)
    known = shared.low > 0 and math.isfinite(high)
    return SharedE(own, shared, known, probability, probability < LEVEL, _sentence(shared, probability, list(own)))


def _likelihood_ratio(profile: ProfileOfE, E: Floats) -> Floats:
    """Twice the log likelihood ratio of each E against the fit's own: the threshold of 95 % is chi-squared's 3.84.

    The threshold of the profile allows for how few runs there are (profile.py), so it sets the scale.
    """
    tried = np.array(profile.E)
    above = np.maximum(np.array(profile.objective) - profile.minimum, 0.0) / (profile.threshold - profile.minimum)
    # The signed root of a ratio is nearly straight between the E that were tried; the ratio itself bends.
    root = np.sign(tried - profile.interval.value) * np.sqrt(float(chdtri(1, LEVEL)) * above)
    return np.interp(E, tried, root) ** 2


def _sentence(shared: Estimate, probability: float, names: list[str]) -> str:
    if probability < LEVEL:
        return (
            f"The fits contradict one common E (p = {probability:.2g}): a family that cannot express the data at any "
            "size, or a law that does not hold for one of them"
        )
    whom = " and ".join(names) if len(names) == 2 else "all families"
    if shared.low <= 0 and math.isinf(shared.high):
        return f"Any E suits {whom}: even together these runs do not identify it"
    upper = "open" if math.isinf(shared.high) else f"{shared.high:.4g}"
    return f"One E suits {whom}: {shared.value:.4g} [{shared.low:.4g}, {upper}] (p = {probability:.2g})"
