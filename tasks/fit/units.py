"""Units of a table of runs: loss to nats, compute to FLOPs, and a check that N, D and C belong together.

Training costs about 6 FLOPs per parameter and token, so C/(N D) far from it means another unit: parameters in millions
and tokens in billions are the usual ones, and a law fitted to them is wrong by as much without a sign of it.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas

from reducible.tasks.errors import UserError
from reducible.tasks.fit.cost import Floats
from reducible.tasks.words import listed

PF_DAY = 1e15 * 86400
USUAL = (0.8, 125.0)
"""C/(N D) that needs no question: a mixture of experts lies below 6, small models without embeddings above."""
FEWEST_UNITS = 1e4
PER_PARAMETER = (1e-3, 1e6)
"""D/N of any training."""
MOST_NATS = 15.0
"""Of a target: a guess among three million tokens."""

_SCALES = {"N": (1.0, 1e6, 1e9, 1e3), "D": (1.0, 1e9, 1e6, 1e12), "C": (1.0, PF_DAY, 1e18, 1e21, 1e15, 1e12, 1e9)}
_WORDS = {1e3: "thousands", 1e6: "millions", 1e9: "billions", 1e12: "trillions"}
_LIKELY = {"N": (1e3, 1e13), "D": (1e5, 1e15)}


def nats(loss: Floats, unit: str) -> Floats:
    """Loss per target unit in nats, from bits or perplexity."""
    if unit == "bits":
        return loss * math.log(2)
    if unit == "perplexity":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(loss)
    return loss


def check_units(table: pandas.DataFrame, size: str, where: str) -> None:
    """Refuses runs whose C/(N D) is not that of a training; `size` names the column of N.

    Raises:
        UserError: the line says in which unit the numbers probably are, and which option says so.
    """
    N, D, C = (table[name].to_numpy(dtype=float) for name in (size, "D", "C"))
    sound = (N > 0) & (D > 0) & (C > 0) & np.isfinite(N * D * C)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = C / N / D
    odd = np.flatnonzero(sound & ((ratio < USUAL[0]) | (ratio > USUAL[1])))
    if not len(odd):
        return
    found = float(np.median(ratio[odd]))
    of_all = int(sound.sum())
    whose = "" if len(odd) == of_all else f" in {len(odd)} of {of_all} rows (the first is row {odd[0] + 2})"
    raise UserError(
        f"{where}: C/(N D) is {found:.3g}{whose}, where training costs about 6: "
        f"{_guess(*(float(np.median(v[odd])) for v in (N, D, C)))}; --unchecked takes the numbers as they are"
    )


def check_counts(table: pandas.DataFrame, size: str, where: str) -> None:
    """The same where C is not in the table: N and D alone tell less.

    Raises:
        UserError: as check_units.
    """
    both = table[[size, "D"]].dropna()
    both = both[(both > 0).all(axis=1)]
    if both.empty:
        return
    ratio = both["D"] / both[size]
    few, many = both[ratio < PER_PARAMETER[0]], both[ratio > PER_PARAMETER[1]]
    if both["D"].median() < FEWEST_UNITS:
        said = f"D is {both['D'].median():.3g} units in the middle: it is probably in billions (--scale D=1e9)"
    elif len(many):
        said = f"D/N is {ratio.max():.3g}{_of(many, both)}: N is probably in millions (--scale N=1e6)"
    elif len(few):
        said = f"D/N is {ratio.min():.3g}{_of(few, both)}: D is probably in millions (--scale D=1e6)"
    else:
        return
    raise UserError(f"{where}: {said}; --unchecked takes the numbers as they are")


def check_loss(table: pandas.DataFrame, where: str) -> None:
    """Refuses losses that are worse than a guess among all tokens there are: they are perplexities.

    A few such rows may be runs that exploded.

    Raises:
        UserError: the line names the option that says the unit.
    """
    losses = table["loss"][np.isfinite(table["loss"])]
    if len(losses) and losses.quantile(0.75) > MOST_NATS:
        raise UserError(
            f"{where}: the loss is {losses.median():.3g} in the middle, and a guess among a million tokens costs 13.8 "
            "nats: it is probably perplexity (--unit perplexity), or a sum; --unit nats takes it as it is"
        )


def _of(odd: pandas.DataFrame, all_: pandas.DataFrame) -> str:
    """In which rows, if not in all."""
    return "" if len(odd) == len(all_) else f" in {len(odd)} of {len(all_)} rows (the first is row {odd.index[0] + 2})"


def _guess(N: float, D: float, C: float) -> str:
    """The simplest change of units that makes C/(N D) usual, in words."""
    if 0.8 < C / N < 125 and D > 1e3:
        return "C is probably FLOPs per token; leave it out (--ignore) or give the FLOPs of the training"
    if 0.8 < C / N**2 / D < 125 and D < 1e5:
        return "D is probably tokens per parameter; give the tokens"
    tried = []
    for n, d, c in product(_SCALES["N"], _SCALES["D"], _SCALES["C"]):
        ratio = c * C / (n * N) / (d * D)
        if USUAL[0] <= ratio <= USUAL[1]:
            unlikely = sum(
                not low <= value <= high for value, (low, high) in zip((n * N, d * D), _LIKELY.values(), strict=True)
            )
            changes = sum(scale != 1 for scale in (n, d, c))
            places = _SCALES["N"].index(n) + _SCALES["D"].index(d) + _SCALES["C"].index(c)
            tried.append((unlikely, changes, places, abs(math.log(ratio / 6)), {"N": n, "D": d, "C": c}))
    if not tried:
        return "the columns do not belong together in any usual unit; say which they are with --column and --scale"
    scales = {name: scale for name, scale in min(tried, key=lambda one: one[:4])[-1].items() if scale != 1}
    return listed([_said(name, scale) for name, scale in scales.items()])


def _said(name: str, scale: float) -> str:
    if scale == PF_DAY:
        return "C is probably in PF-days (--compute-unit pf-days)"
    words = f"in {_WORDS[scale]}" if name != "C" and scale in _WORDS else f"in units of {scale:.0e} FLOPs"
    return f"{name} is probably {words.replace('e+', 'e')} (--scale {name}={scale:.0e})".replace("e+0", "e").replace(
        "e+", "e"
    )
