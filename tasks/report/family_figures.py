"""Several families in one picture: reducible loss, loss as measured, and difference of loss, against compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reducible.tasks.fit.best_loss import BestLoss, band, best_loss
from reducible.tasks.fit.overtaking import Comparison, loss_tables
from reducible.tasks.fit.result import Fit, Floats
from reducible.tasks.report.scene import Figure, Panel
from reducible.tasks.report.style import (
    INK,
    MARKERS,
    extrapolation,
    finite,
    legend,
    log_axis,
    panel,
    save,
    short_name,
    styled,
)
from reducible.tasks.words import plural


@dataclass(frozen=True)
class Member:
    """One family: its fit and how it looks."""

    name: str
    fit: Fit
    best: BestLoss | None
    colour: str
    marker: str

    @property
    def label(self) -> str:
        return short_name(self.name, 18)

    @property
    def lowest(self) -> list[tuple[float, float]]:
        """(C, loss) of each budget's minimum; if no minimum can be trusted, of each budget's lowest run."""
        points = self.fit.frontier.points
        trusted = [(p.C, p.loss.value) for p in points if p.refused is None and p.loss is not None]
        if trusted:
            return trusted
        budgets: dict[float, float] = {}
        for run in self.fit.used:
            key = run.budget or run.C
            budgets[key] = min(run.loss, budgets.get(key, np.inf))
        return sorted(budgets.items())


class Families:
    """What the pictures are drawn from."""

    def __init__(
        self, fits: Mapping[str, Fit], comparison: Comparison, colours: Mapping[str, str], folder: Path, unit: str
    ) -> None:
        self.members = [
            Member(name, fit, best_loss(fit), colours[name], MARKERS[i % len(MARKERS)])
            for i, (name, fit) in enumerate(fits.items())
        ]
        self.comparison = comparison
        self.folder = folder
        self.nats = f"nats per {unit}"
        computes = [run.C for fit in fits.values() for run in (fit.used or fit.runs) if run.C > 0]
        self.start, self.end = min(computes, default=1.0), max(computes, default=10.0)
        self.grid: Floats = np.geomspace(self.start / 1.5, 10 * self.end, 60)
        self.tested = slice(*np.searchsorted(self.grid, [self.start, 1.001 * self.end]))

    @property
    def fitted(self) -> list[tuple[Member, BestLoss]]:
        return [(member, member.best) for member in self.members if member.best is not None]

    @property
    def sample(self) -> str:
        return "; ".join(f"{m.name}: n = {len(m.fit.used)} of {plural(len(m.fit.runs), 'run')}" for m in self.members)


def draw_families(
    fits: Mapping[str, Fit], comparison: Comparison, colours: Mapping[str, str], folder: Path, unit: str
) -> Figure:
    """Writes families-*.png into `folder`."""
    scene = Families(fits, comparison, colours, folder, unit)
    with styled(), np.errstate(all="ignore"):
        panels = [_raw(scene)]
        if scene.fitted:
            panels.insert(0, _reducible(scene))
        if len(scene.fitted) > 1:
            panels.append(_difference(scene))
    given = [f"E of {member.name} = {best.E.value:.4g}" for member, best in scene.fitted]
    return Figure("families", f"{'; '.join([*given, scene.sample])}.", tuple(panels))


def _reducible(scene: Families) -> Panel:
    canvas, axes = panel("Reducible loss", "training compute C (FLOPs)", f"loss − own E ({scene.nats})")
    shown: list[float] = []
    for member, best in scene.fitted:
        line = best.reducible(scene.grid)
        minima = [(C, loss - best.E.value) for C, loss in member.lowest if loss > best.E.value]
        shown += [*finite(line[scene.tested]), line[-1], *(value for _, value in minima)]
    bottom, top = min(shown) / 1.7, max(shown) * 1.6
    for member, best in scene.fitted:
        low, high = (np.clip(edge, bottom, top) for edge in best.reducible_band(scene.grid))
        axes.fill_between(scene.grid, low, high, color=member.colour, alpha=0.15, linewidth=0)
        axes.plot(scene.grid, best.reducible(scene.grid), color=member.colour, linewidth=1.8, label=member.label)
        for C, loss in member.lowest:
            if loss <= best.E.value:
                continue
            # Whiskers: this minimum over the interval of E.
            least = max(loss - best.E.high, bottom) if np.isfinite(best.E.high) else bottom
            most = loss - best.E.low if np.isfinite(best.E.low) else top
            axes.vlines(C, least, most, color=member.colour, linewidth=1.2, zorder=4)
            _mark(axes, member, C, loss - best.E.value)
    axes.set_ylim(bottom, top)
    log_axis(axes.yaxis, "plain")
    _compute_axis(scene, axes)
    legend(axes)
    path = scene.folder / "families-reducible.png"
    save(canvas, path, f"Reducible loss of each family, with its own E, against FLOPs. {scene.sample}.")
    return Panel(path, "Reducible loss of every family against training compute, both logarithmic, with bands")


def _raw(scene: Families) -> Panel:
    canvas, axes = panel("Loss as measured", "training compute C (FLOPs)", f"loss ({scene.nats})")
    shown = [loss for member in scene.members for _, loss in member.lowest]
    for _, best in scene.fitted:
        shown += finite(best.loss(scene.grid)[scene.tested]) + finite(best.loss(scene.grid[-1:]))
    shown = shown or [0.0, 1.0]
    near = min(shown) - 0.6 * (max(shown) - min(shown))  # an E further down would flatten the runs
    shown += [best.E.value for _, best in scene.fitted if best.E.value > near]
    margin = 0.06 * (max(shown) - min(shown) or 1.0)
    bottom, top = min(shown) - margin, max(shown) + 2 * margin
    for member in scene.members:
        runs = [run for run in member.fit.used if run.loss <= top]
        axes.plot([r.C for r in runs], [r.loss for r in runs], ".", color=member.colour, markersize=3.5, alpha=0.35)
        if member.best is not None:
            low, high = (np.clip(edge, bottom, top) for edge in member.best.loss_band(scene.grid))
            axes.fill_between(scene.grid, low, high, color=member.colour, alpha=0.15, linewidth=0)
            axes.plot(scene.grid, member.best.loss(scene.grid), color=member.colour, linewidth=1.8)
            if bottom < member.best.E.value:
                axes.axhline(member.best.E.value, color=member.colour, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8)
        for C, loss in member.lowest:
            _mark(axes, member, C, loss)
        axes.plot([], [], "-" + member.marker, color=member.colour, markersize=6, label=member.label)
    axes.set_ylim(bottom, top)
    _compute_axis(scene, axes)
    _crossings(scene, axes)
    legend(axes)
    path = scene.folder / "families-loss.png"
    save(canvas, path, f"Loss of each family against FLOPs. {scene.sample}.")
    return Panel(path, "Loss of every family against training compute, with laws, bands and where they cross")


def _difference(scene: Families) -> Panel:
    """The best loss of every family minus that of the first, with paired draws. Runs can tell if a band leaves 0."""
    (reference, _), *others = scene.fitted
    canvas, axes = panel(
        f"Behind {reference.label}", "training compute C (FLOPs)", f"difference of loss ({scene.nats})"
    )
    tables = loss_tables({member.name: best for member, best in scene.fitted}, scene.grid)
    gaps = {member.name: tables[member.name] - tables[reference.name] for member, _ in others}
    bands = {name: band(gap) for name, gap in gaps.items()}
    shown = [0.0]
    for name, gap in gaps.items():
        shown += finite(gap[scene.tested, 0])
        shown += finite(np.concatenate([edge[scene.tested] for edge in bands[name]]))
    margin = 0.25 * (max(shown) - min(shown) or 1.0)
    bottom, top = min(shown) - margin, max(shown) + margin
    axes.axhline(0, color=reference.colour, linewidth=1.8, label=f"{reference.label} (0)")
    for member, _ in others:
        low, high = (np.clip(edge, bottom, top) for edge in bands[member.name])
        axes.fill_between(scene.grid, low, high, color=member.colour, alpha=0.18, linewidth=0)
        axes.plot(scene.grid, gaps[member.name][:, 0], color=member.colour, linewidth=1.8, label=member.label)
    axes.set_ylim(bottom, top)
    axes.locator_params(axis="y", nbins=7)
    _compute_axis(scene, axes)
    legend(axes)
    path = scene.folder / "families-difference.png"
    save(canvas, path, f"Best loss of each family less that of {reference.name}, against FLOPs. {scene.sample}.")
    return Panel(path, f"How far every family is behind (above 0) or ahead of {reference.name}, with bands")


def _crossings(scene: Families, axes: Any) -> None:
    """Draws the overtakings that are sure, with their intervals."""
    sure = [one for pair in scene.comparison.overtakings for one in pair.crossings if one.sure]
    colours = {member.name: member.colour for member in scene.members}
    low, high = scene.grid[0], scene.grid[-1]
    for crossing in sure:
        at = crossing.compute
        if not low < at.value < high:
            continue
        axes.axvspan(max(at.low, low), min(at.high, high), color=INK, alpha=0.07, linewidth=0, zorder=0)
        words = f"{short_name(crossing.overtaker, 14)} overtakes {short_name(crossing.overtaken, 14)}"
        both = {"color": colours[crossing.overtaker], "gapcolor": colours[crossing.overtaken]}
        axes.axvline(at.value, linewidth=1.6, linestyle="--", zorder=2, label=words, **both)


def _compute_axis(scene: Families, axes: Any) -> None:
    axes.set_xlim(scene.grid[0], scene.grid[-1])
    log_axis(axes.xaxis)
    if scene.fitted:
        extrapolation(axes, scene.end, scene.grid[-1])


def _mark(axes: Any, member: Member, C: float, value: float) -> None:
    axes.plot(C, value, member.marker, color=member.colour, markersize=7.5, mec="white", mew=0.9, zorder=5)
