"""Several families on the same data and one ledger: from which compute on the best loss of one is below another's.

Every fit has bootstrap draws of its best loss L(C). A draw of one family is paired with a draw of the other. The
compute at which the paired curves cross is one draw of the overtaking, and the spread over draws is its interval. If
the draws disagree on whether there is a crossing, or on which family is ahead, the answer is that these runs cannot
tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.fit.best_loss import BestLoss, best_loss, identified
from reducible.tasks.fit.multiplier import Multiplier, multiplier
from reducible.tasks.fit.predict import FAR
from reducible.tasks.fit.result import Estimate, Fit, Floats, estimate, plain, typed
from reducible.tasks.fit.shared_E import SharedE, shared_E

OVERTAKES, AHEAD, CANNOT_TELL = "overtakes", "ahead", "cannot tell"
SURE = 0.95  # of the draws that must agree on a crossing, or on who is ahead
BEFORE, BEYOND = 10.0, FAR  # crossings are looked for so far below and above the compute that was tested
PER_DECADE = (
    24  # points of the grid; between two of them the difference is a straight line in log C to 1e-4 of a decade
)


@dataclass(frozen=True)
class Crossing:
    """Where `overtaker` passes below `overtaken` as compute grows; open ends of the interval are 0 and inf."""

    overtaker: str
    overtaken: str
    compute: Estimate
    share: float  # of the draws that cross this way anywhere in what was searched
    inside: float  # of the draws that cross this way at a compute that was tested
    sure: bool  # whether the draws agree that it is there


@dataclass(frozen=True)
class Overtaking:
    """What the runs say of one pair of families. Compute in FLOPs, losses in nats per target unit."""

    families: tuple[str, str]
    verdict: str  # OVERTAKES, AHEAD (of the other at all compute tested) or CANNOT_TELL
    sentence: str
    tested: tuple[float, float] | None = None  # where both families have runs
    searched: tuple[float, float] | None = None
    crossings: tuple[Crossing, ...] = ()  # of the two fits; sure or not
    ahead: str | None = None  # who is ahead in SURE of the draws over all of `tested`
    ahead_until: float | None = None  # the compute up to which `ahead` stays so
    difference: Estimate | None = None  # best loss of the second less that of the first, at the largest tested compute


@dataclass(frozen=True)
class Comparison:
    """Every pair of a sweep's families, and what their fits say of the loss that none can go below."""

    families: tuple[str, ...]
    overtakings: tuple[Overtaking, ...]
    shared_E: SharedE
    multipliers: tuple[Multiplier, ...] = ()  # of the second of each pair over the first

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as Fit.to_dict."""
        content: dict[str, Any] = plain(self)
        return content

    @classmethod
    def load(cls, path: Path) -> Comparison:
        comparison: Comparison = typed(cls, json.loads(path.read_text()))
        return comparison


def compare(fits: Mapping[str, Fit]) -> Comparison:
    """Fits of families by name, all on the same data with C from one ledger."""
    bests = {name: best for name, fit in fits.items() if (best := best_loss(fit)) is not None}
    ranges = {name: _range(fits[name]) for name in bests}
    grid = _grid(list(ranges.values()))
    tables = loss_tables(bests, grid)
    return Comparison(
        tuple(fits),
        tuple(_pair(pair, fits, ranges, grid, tables) for pair in combinations(fits, 2)),
        shared_E(fits),
        tuple(multiplier(first, second, (fits[first], fits[second])) for first, second in combinations(fits, 2)),
    )


def loss_tables(bests: Mapping[str, BestLoss], C: Floats) -> dict[str, Floats]:
    """The best loss of each family, (points, 1 + draws): row 0 of every family's draws is its fit.

    Families were fitted to different runs, so their draws are independent. All bootstraps start from one seed, which
    would pair draws that left out the same cells: each family's draws are shuffled in an order of their own.
    """
    many = min((len(best.E_rows) for best in bests.values()), default=1)
    tables = {}
    for index, (name, best) in enumerate(bests.items()):
        order = np.r_[0, 1 + np.random.default_rng(index).permutation(len(best.E_rows) - 1)][:many]
        with np.errstate(all="ignore"):
            tables[name] = best.loss_rows(C)[:, order]
    return tables


def _within(C: Floats, low: float, high: float) -> NDArray[np.bool_]:
    """Whether each C lies from low to high, with room for rounding."""
    above, below = low * (1 - 1e-9) <= C, high * (1 + 1e-9) >= C
    return above & below


def _range(fit: Fit) -> tuple[float, float]:
    return min(run.C for run in fit.used), fit.largest_compute


def _grid(ranges: list[tuple[float, float]]) -> Floats:
    if not ranges:
        return np.ones(1)
    low, high = min(start for start, _ in ranges) / BEFORE, max(end for _, end in ranges) * BEYOND
    points = math.ceil(PER_DECADE * math.log10(high / low)) + 1
    return np.unique(np.r_[np.geomspace(low, high, points), [end for both in ranges for end in both]])


def _pair(
    pair: tuple[str, str],
    fits: Mapping[str, Fit],
    ranges: Mapping[str, tuple[float, float]],
    grid: Floats,
    tables: Mapping[str, Floats],
) -> Overtaking:
    first, second = pair
    for name in pair:
        if name not in tables:
            return Overtaking(pair, CANNOT_TELL, f"cannot tell: no law for {name}. {fits[name].health.verdict}")
    tested = max(ranges[first][0], ranges[second][0]), min(ranges[first][1], ranges[second][1])
    if tested[0] >= tested[1]:
        return Overtaking(pair, CANNOT_TELL, f"cannot tell: {first} and {second} have no compute in common")
    near = _within(grid, tested[0] / BEFORE, tested[1] * BEYOND)
    C, gap = grid[near], (tables[second] - tables[first])[near]  # above 0: the first is ahead
    sound: NDArray[np.bool_] = np.asarray(np.isfinite(gap).all(axis=0))
    if not sound[0] or sound.mean() < SURE:
        reason = f"{100 * (1 - sound.mean()):.0f} % of the draws have no best size"
        return Overtaking(pair, CANNOT_TELL, f"cannot tell: {reason}", tested)
    gap = gap[:, sound]
    unknown = [name for name in pair if not identified(fits[name])]
    # A curve whose E is not known says nothing beyond its runs: crossings there are reported as not sure.
    reach = tested[1] if unknown else float(C[-1])
    inside = _within(C, *tested)
    distinct = any(low > 0 or high < 0 for low, high in np.percentile(gap[inside, 1:], [2.5, 97.5], axis=1).T)
    crossings = []
    for at in np.flatnonzero(np.sign(gap[:-1, 0]) * np.sign(gap[1:, 0]) < 0):
        names, lead = (pair, gap) if gap[at, 0] < 0 else ((second, first), -gap)
        known = C[at + 1] <= reach * (1 + 1e-9)
        upto = _within(C, C[0], reach if known else C[-1])
        crossing = _crossing(names, C[upto], lead[upto], int(at), tested)
        crossings.append(crossing if distinct and known else replace(crossing, sure=False))
    ahead, until = _leader(pair, C, gap, tested, reach)
    verdict = OVERTAKES if any(crossing.sure for crossing in crossings) else AHEAD if ahead else CANNOT_TELL
    last = gap[np.searchsorted(C, tested[1])]
    found = Overtaking(
        families=pair,
        verdict=verdict,
        sentence="",
        tested=tested,
        searched=(float(C[0]), reach),
        crossings=tuple(crossings),
        ahead=ahead,
        ahead_until=until,
        difference=estimate(float(last[0]), last[1:]),
    )
    return _with_sentence(found, unknown, distinct)


def _crossing(names: tuple[str, str], C: Floats, lead: Floats, at: int, tested: tuple[float, float]) -> Crossing:
    """lead (points, 1 + draws): how far the overtaker is ahead, rising through 0 between `at` and `at + 1` in row 0."""
    value = _zero(C, lead[:, 0], at)
    places = np.full(lead.shape[1] - 1, math.nan)  # a draw that crosses the other way only has no place
    for draw in range(lead.shape[1] - 1):
        line = lead[:, 1 + draw]
        rising = np.flatnonzero((line[:-1] < 0) & (line[1:] >= 0))
        if len(rising):
            zeros = [_zero(C, line, int(i)) for i in rising]
            places[draw] = min(zeros, key=lambda zero: abs(math.log(zero / value)))
        elif (line >= 0).all():
            places[draw] = 0.0  # ahead already where the search begins
        elif (line < 0).all():
            places[draw] = math.inf
    there = np.isfinite(places) & (places > 0)
    share = float(there.mean())
    within = float((there & _within(places, *tested)).mean())
    return Crossing(*names, estimate(value, places), share, within, share >= SURE)


def _zero(C: Floats, line: Floats, at: int) -> float:
    """Where the straight line in log C between two points of the grid is 0."""
    start, end = math.log(C[at]), math.log(C[at + 1])
    return math.exp(start + (end - start) * line[at] / (line[at] - line[at + 1]))


def _leader(
    pair: tuple[str, str], C: Floats, gap: Floats, tested: tuple[float, float], reach: float
) -> tuple[str | None, float | None]:
    """Who is ahead all the way through the tested compute in SURE of the draws, and up to where."""
    way = _within(C, tested[0], reach)
    for name, lead in zip(pair, (gap, -gap), strict=True):
        so_far = np.logical_and.accumulate(lead[way, 1:] > 0, axis=0).mean(axis=1)  # draws in which it never was behind
        until = C[way][so_far >= SURE]
        if len(until) and until[-1] >= tested[1] and (lead[way, 0][: len(until)] > 0).all():
            return name, float(until[-1])
    return None, None


def _with_sentence(found: Overtaking, unknown: list[str], distinct: bool) -> Overtaking:
    first, second = found.families
    assert found.tested is not None and found.searched is not None and found.difference is not None
    start, end = found.tested
    sure = [crossing for crossing in found.crossings if crossing.sure]
    unsure = [crossing for crossing in found.crossings if not crossing.sure]
    if found.ahead is not None:  # a crossing below the compute tested is then of no use
        unsure = [crossing for crossing in unsure if crossing.compute.value > start]
    parts = []
    for crossing in sure:
        parts.append(f"{crossing.overtaker} overtakes {crossing.overtaken} at {_where(crossing.compute)}")
        if crossing.compute.value > end:
            parts[-1] += f", beyond the {end:.3g} FLOPs that were tested: an extrapolation"
        elif crossing.compute.value < start:
            parts[-1] += f", below the {start:.3g} FLOPs that were tested: an extrapolation"
        parts[-1] += (
            f" ({_percent(crossing.share)} of the draws cross, {_percent(crossing.inside)} within the tested range)"
        )
    if found.ahead is not None:
        assert found.ahead_until is not None
        behind = second if found.ahead == first else first
        gap = found.difference if found.ahead == first else _negative(found.difference)
        parts.append(
            f"{found.ahead} is ahead of {behind} at all compute tested, by {_nats(gap)} at {end:.3g} FLOPs"
            + (f", and stays ahead up to {found.ahead_until:.3g}" if found.ahead_until > 1.05 * end else "")
        )
    if unsure and (found.ahead is not None or sure):
        parts += [f"whether {_doubt(crossing, found, unknown)}, these runs cannot tell" for crossing in unsure]
    if not parts:
        if not distinct:
            why = f"the bands of {first} and {second} overlap at all compute tested ({start:.3g} to {end:.3g} FLOPs)"
        elif unsure:
            why = "; ".join(f"whether {_doubt(crossing, found, unknown)}" for crossing in unsure)
        else:
            why = f"neither is ahead at all compute tested in {_percent(SURE)} of the draws, and the fits do not cross"
        parts = [f"cannot tell: {why}"]
    return replace(found, sentence="; ".join(parts))


def _doubt(crossing: Crossing, found: Overtaking, unknown: list[str]) -> str:
    assert found.tested is not None
    who = f"{crossing.overtaker} overtakes {crossing.overtaken}"
    at = f"{crossing.compute.value:.3g} FLOPs"
    if crossing.compute.value > found.tested[1] and unknown:
        return (
            f"{who} at {at} according to the fits (beyond the tested range, and E of {' and '.join(unknown)} not known)"
        )
    outside = not found.tested[0] <= crossing.compute.value <= found.tested[1]
    place = ", outside the tested range" if outside else ""
    return f"{who} at {at} according to the fits (only {_percent(crossing.share)} of the draws cross{place})"


def _where(compute: Estimate) -> str:
    return f"{compute.value:.3g} FLOPs {_interval(compute)}"


def _interval(compute: Estimate) -> str:
    low = "open" if compute.low == 0 else f"{compute.low:.3g}"
    high = "open" if math.isinf(compute.high) else f"{compute.high:.3g}"
    return f"[{low}, {high}]"


def _nats(gap: Estimate) -> str:
    return f"{gap.value:.3g} [{gap.low:.3g}, {gap.high:.3g}] nats"


def _negative(gap: Estimate) -> Estimate:
    return Estimate(-gap.value, -gap.high, -gap.low)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
