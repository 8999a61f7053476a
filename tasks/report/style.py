"""How every picture looks: sizes, fonts, and one colour and marker per budget and per model size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from reducible.tasks.fit.result import Fit, Run
from reducible.tasks.words import count, power_of_ten

T = TypeVar("T")
# One panel is one PNG, so that the page can stand panels side by side or stack them on a phone and stay legible:
# at 5.2 inches, 10.5 points are about 10 pixels on a screen 360 pixels wide.
WIDTH, HEIGHT, DPI = 5.2, 4.0, 190
BOTTOM, ROW = 0.135, 0.055  # of the height: room for axis labels, and for each row of a legend
INK, FAINT, LAW, AXES = "#1f2328", "#8a9099", "#b3123f", "#5b626b"
MARKERS = "osD^vPXp*h"
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.edgecolor": "#5b626b",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and legend text of a group of runs."""

    colour: str
    marker: str
    label: str


NO_BUDGET = Look("#44617b", "o", "no budget")
NEAR = np.log(1.1)  # budgets this close are one


class Palette:
    """The look of each budget (viridis) and of each size (plasma): ordered, and distinct to colour-blind eyes.

    Both scales end before their palest colours, which vanish on white; markers differ as well.
    """

    def __init__(self, fit: Fit) -> None:
        self._budget_of: dict[str, float] = {}
        self._points = [point.C for point in fit.frontier.points]
        for point in fit.frontier.points:
            self._budget_of |= dict.fromkeys(point.runs, point.C)
        if not self._points:
            self._points = sorted({run.budget for run in fit.runs if run.budget is not None})
        budgets = sorted({budget for run in fit.runs if (budget := self.budget(run)) is not None and budget > 0})
        shades = _shades("viridis", len(budgets), 0.82)
        self.budgets = {
            budget: Look(shade, MARKERS[i % len(MARKERS)], f"{power_of_ten(budget)} FLOPs")
            for i, (budget, shade) in enumerate(zip(budgets, shades, strict=True))
        }
        self._sizes = np.log([run.N for run in fit.runs if np.isfinite(run.N) and run.N > 0] or [1.0])

    def budget(self, run: Run) -> float | None:
        """The budget that a run belongs to, as the fit groups them, or None."""
        return self._budget_of.get(run.name, self._known(run.budget or run.C) or run.budget)

    def look(self, run: Run) -> Look:
        budget = self.budget(run)
        return self.at(budget) if budget is not None else NO_BUDGET

    def at(self, C: float) -> Look:
        """The look of the budget of C FLOPs, or nearly so: runs end on whole steps."""
        known = self._known(C)
        return NO_BUDGET if known is None else self.budgets.get(known, NO_BUDGET)

    def _known(self, C: float) -> float | None:
        near = [known for known in self._points if abs(np.log(C / known)) < NEAR] if C > 0 else []
        return min(near, key=lambda known: abs(np.log(C / known)), default=None)

    def size(self, N: float) -> str:
        low, high = self._sizes.min(), self._sizes.max()
        place = (np.log(N) - low) / (high - low) if high > low else 0.5
        return _shade("plasma", 0.85 * float(np.clip(place, 0, 1)))


def panel(title: str, x: str, y: str) -> tuple[Canvas, Any]:
    canvas = Canvas(figsize=(WIDTH, HEIGHT), dpi=DPI)
    # Fixed margins: panels that stand beside each other line up, and drawing takes half the time of a layout engine.
    canvas.subplots_adjust(left=0.16, right=0.94, top=0.925, bottom=BOTTOM)
    axes = canvas.add_subplot()
    axes.set_title(title, y=1.0)  # said, because matplotlib otherwise lays out all ticks once more to find it
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return canvas, axes


def styled() -> Any:
    return matplotlib.rc_context(STYLE)


def save(canvas: Canvas, path: Path, caption: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The picture carries its caption when it travels without the page; no date, so that equal input gives equal bytes.
    canvas.savefig(path, metadata={"Description": caption.encode("latin-1", "replace").decode("latin-1")})
    return path


def log_axis(axis: Any, kind: str = "power") -> None:
    """Makes the axis logarithmic, with ticks that are readable even if it spans less than a decade.

    kind: power (10^12), count (30k), plain (0.3).
    """
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    low, high = sorted(axis.get_view_interval())
    if 0 < low <= high < 1.25 * low:
        low, high = low / 1.4, high * 1.4
    decades = np.log10(high / low) if low > 0 and np.isfinite(high / low) else 3.0
    if decades < 0.7:
        # Powers of ten and their simple multiples are too far apart to stand on so short an axis.
        axis.set_major_locator(FixedLocator(MaxNLocator(5).tick_values(low, high)))
        axis.set_minor_locator(NullLocator())
    else:
        digits = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=digits, numticks=12))
        axis.set_minor_locator(NullLocator())
        if decades < 7:
            _minor_marks(axis, low, high)
    axis.axes.set_xlim(low, high) if axis.axis_name == "x" else axis.axes.set_ylim(low, high)
    axis.set_minor_formatter(NullFormatter())
    write = {"power": lambda value: power_of_ten(value, 2), "count": count, "plain": lambda value: f"{value:g}"}[kind]
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _minor_marks(axis: Any, low: float, high: float) -> None:
    """Minor ticks as one artist: each of matplotlib's own is five, which takes a fifth of the time of a page."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    at = [place for place in np.outer(powers, np.arange(2, 10)).ravel() if low <= place <= high]
    style = {"color": AXES, "linestyle": "none", "markersize": 2, "markeredgewidth": 0.6, "clip_on": False, "zorder": 2}
    if axis.axis_name == "x":
        transform = axis.axes.get_xaxis_transform()
        axis.axes.plot(at, [0] * len(at), marker=TICKDOWN, transform=transform, scalex=False, scaley=False, **style)
    else:
        transform = axis.axes.get_yaxis_transform()
        axis.axes.plot([0] * len(at), at, marker=TICKLEFT, transform=transform, scalex=False, scaley=False, **style)


def extrapolation(axes: Any, start: float, end: float) -> None:
    """Shades the range beyond the runs. The axes' limits and scale must be set before."""
    if end > start:
        narrow = axes.transAxes.inverted().transform(axes.transData.transform((start, 1.0)))[0] > 0.75
        axes.axvspan(start, end, color="#eef0f3", zorder=0)
        axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        words, side = ("extrapolation ", "right") if narrow else (" extrapolation", "left")
        place = {"transform": axes.get_xaxis_transform(), "ha": side, "va": "top"}
        axes.text(start, 0.985, words, fontsize=8.5, color="#5b626b", style="italic", **place)


def legend(axes: Any) -> None:
    """Puts the legend below the axes, where it hides nothing; the axes shrink for more than two rows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 3 if max(map(len, labels)) < 18 else 2
        rows = max(2, -(-len(handles) // columns))
        axes.figure.subplots_adjust(bottom=BOTTOM + ROW * rows)
        axes.figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=columns)


def dots(axes: Any, palette: Palette, places: Sequence[tuple[Run, float, float]], **style: Any) -> None:
    """Draws the runs of a budget in its colour and marker, as one artist: a thousand artists would take a minute."""
    groups: dict[Look, list[tuple[float, float]]] = {}
    for run, x, y in places:
        groups.setdefault(palette.look(run), []).append((x, y))
    for look, points in groups.items():
        axes.plot(*zip(*points, strict=True), look.marker, color=look.colour, **style)


def hollow(axes: Any, palette: Palette, places: Sequence[tuple[Run, float, float]], top: float) -> None:
    """Draws excluded runs as hollow marks; one beyond the picture stands at its upper edge."""
    for i, (run, x, y) in enumerate(places):
        look = palette.look(run)
        marker, label = "^" if y > top else look.marker, "" if i else "excluded"
        style = {"mfc": "white", "mec": look.colour, "mew": 1.3, "markersize": 6, "clip_on": False, "zorder": 5}
        axes.plot(x, min(y, top), marker, label=label, **style)


def write_name(axes: Any, run: Run, x: float, y: float) -> None:
    """Writes a run's name beside its mark, where there is room. The axes' limits and scales must be set before."""
    right, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    axes.annotate(
        short_name(run.name),
        (x, y),
        xytext=(6 if right < 0.55 else -6, 5 if up < 0.9 else -9),
        textcoords="offset points",
        ha="left" if right < 0.55 else "right",
        fontsize=7.5,
        color="#5b626b",
    )


def some(items: list[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, ends included."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def short_name(name: str, length: int = 26) -> str:
    """A user's name for the inside of a picture: bounded, and without the sign that starts mathtext."""
    name = " ".join(name.split())
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _shades(scale: str, many: int, end: float) -> list[str]:
    return [_shade(scale, end * (i / (many - 1) if many > 1 else 0.4)) for i in range(many)]


def _shade(scale: str, place: float) -> str:
    return str(matplotlib.colors.to_hex(matplotlib.colormaps[scale](place)))
