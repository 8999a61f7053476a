"""Loss against compute: the runs and the law, raw and reducible, and the learning curves behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reducible.tasks.fit.best_loss import BestLoss
from reducible.tasks.report.scene import Curve, Figure, Panel, Scene
from reducible.tasks.report.style import (
    INK,
    LAW,
    dots,
    extrapolation,
    finite,
    hollow,
    legend,
    log_axis,
    panel,
    save,
    some,
)
from reducible.tasks.words import count, exact, listed, number, plural

ASYMPTOTE = "#0b6e99"


def loss(scene: Scene) -> Figure:
    """Reducible loss, log-log, beside the raw loss with E as a line."""
    used, best = scene.fit.used, scene.best
    if not used:
        return Figure("loss", missing="No run was used, so there is no loss to draw against compute.")
    if best is None:
        return Figure("loss", scene.sample, (_raw(scene, None),))
    caption = f"{scene.formula} {scene.sample} E: 95 % [{exact(best.E.low)}, {exact(best.E.high)}]."
    if below := [run.name for run in used if run.loss <= best.E.value]:
        caption += f" At or below E, so not on a logarithmic axis (arrows): {listed(below, 12)}."
    return Figure("loss", caption, (_reducible(scene, best), _raw(scene, best)))


def _reducible(scene: Scene, best: BestLoss) -> Panel:
    canvas, axes = panel("Reducible loss", "training compute C (FLOPs)", f"loss − E ({scene.nats})")
    E, grid, line = best.E, scene.grid, best.reducible(scene.grid)
    shown = [*(run.loss - E.value for run in scene.fit.used if run.loss > E.value), line[0], line[-1]]
    bottom, top = min(shown) / 1.6, max(shown) * 1.5
    _band(axes, grid, best.reducible_band(grid), bottom, top)
    axes.plot(grid, line, color=LAW, linewidth=1.8, label="law, 95 % band")
    above = [(run, run.C, run.loss - E.value) for run in scene.fit.used if run.loss > E.value]
    dots(axes, scene.palette, above, markersize=4.5, alpha=0.6)
    below = [run.C for run in scene.fit.used if run.loss <= E.value]
    edge = {"transform": axes.get_xaxis_transform(), "color": INK, "linestyle": "none"}
    axes.plot(below, [0.03] * len(below), marker=r"$\downarrow$", markersize=9, zorder=6, **edge)
    left_out = [(run, run.C, run.loss - E.value) for run in scene.excluded if bottom < run.loss - E.value < top]
    dots(axes, scene.palette, left_out, mfc="white", markersize=4.5)
    for point in scene.minima:
        assert point.loss is not None
        value = point.loss.value - E.value
        if value <= 0:
            continue
        # Whiskers: this minimum over the interval of E.
        low = max(point.loss.value - E.high, bottom) if np.isfinite(E.high) else bottom
        high = point.loss.value - E.low if np.isfinite(E.low) else top
        axes.vlines(point.C, low, high, color=scene.palette.at(point.C).colour, linewidth=1.4, zorder=4)
        _big(scene, axes, point.C, value)
    axes.set_ylim(bottom, top)
    log_axis(axes.yaxis, "plain")
    _compute_axis(scene, axes)
    for look in some(list(scene.palette.budgets.values()), 9):
        axes.plot([], [], look.marker, color=look.colour, markersize=6, label=look.label)
    legend(axes)
    path = scene.folder / "reducible-loss.png"
    save(canvas, path, f"Reducible loss against FLOPs. {scene.formula} {scene.sample}")
    return Panel(path, "Reducible loss against training compute, both logarithmic, with the law and its band")


def _raw(scene: Scene, best: BestLoss | None) -> Panel:
    canvas, axes = panel("Loss as measured", "training compute C (FLOPs)", f"loss ({scene.nats})")
    grid, shown = scene.grid, [run.loss for run in scene.fit.used]
    if best is not None:
        shown += finite(best.loss(grid[[0, -1]]))
        # An E far below the runs, or an interval that reaches far down, would flatten them.
        deep = min(shown) - best.E.value > 2 * (max(shown) - min(shown))
        if not deep:
            shown += [best.E.value]
            shown += finite([max(best.E.low, best.E.value - 0.5 * (max(shown) - min(shown)))])
    margin = 0.06 * (max(shown) - min(shown) or 1.0)
    bottom, top = min(shown) - margin, max(shown) + 2 * margin
    if best is not None:
        _band(axes, grid, best.loss_band(grid), bottom, top)
        axes.plot(grid, best.loss(grid), color=LAW, linewidth=1.8, label="law, 95 % band")
        if best.source == "law" and scene.fit.frontier.E is not None:
            axes.plot(grid, scene.fit.frontier.loss(grid), "--", color=INK, linewidth=1.1, label="through the minima")
        low = best.E.low if np.isfinite(best.E.low) else bottom
        high = best.E.high if np.isfinite(best.E.high) else top
        axes.axhspan(max(low, bottom), min(high, top), color=ASYMPTOTE, alpha=0.13, linewidth=0)
        if deep:
            words = f"E = {number(best.E.value)} lies below the picture"
            axes.text(0.02, 0.03, words, transform=axes.transAxes, color=ASYMPTOTE, fontsize=8.5)
        else:
            axes.axhline(best.E.value, color=ASYMPTOTE, linewidth=1.4, linestyle="--", label="E, 95 % interval")
    dots(axes, scene.palette, [(run, run.C, run.loss) for run in scene.fit.used], markersize=4.5, alpha=0.6)
    hollow(axes, scene.palette, [(run, run.C, run.loss) for run in scene.excluded], top)
    for point in scene.minima:
        assert point.loss is not None
        _big(scene, axes, point.C, point.loss.value)
    axes.set_ylim(bottom, top)
    _compute_axis(scene, axes)
    legend(axes)
    path = scene.folder / "loss.png"
    save(canvas, path, f"Loss against FLOPs. {scene.formula} {scene.sample}")
    return Panel(path, "Loss as measured against training compute, with the law and E as a line")


def learning(scene: Scene, curves: Sequence[Curve]) -> Figure:
    """Loss against FLOPs of every training, coloured by size."""
    lines = []
    for curve in sorted(curves, key=lambda curve: curve.N):
        C, loss = np.array(curve.C), np.array(curve.loss)
        sound = np.isfinite(loss) & (C > 0)
        if sound.sum() > 1:
            lines.append((curve, C[sound], loss[sound]))
    if not lines:
        return Figure("learning", missing="No training recorded its loss more than once.")
    kind = lines[0][0].kind
    canvas, axes = panel("Learning curves", "training compute C (FLOPs)", f"{kind} loss ({scene.nats})")
    excluded = {run.name for run in scene.fit.excluded}
    for curve, C, loss in lines:
        colour, left_out = scene.palette.size(curve.N), curve.name in excluded
        axes.plot(C, loss, ":" if left_out else "-", color=colour, linewidth=1.2, alpha=0.85)
        axes.plot(C[-1], loss[-1], "o", color=colour, markersize=4, mfc="white" if left_out else colour)
    for N in some(sorted({curve.N for curve, _, _ in lines}), 8):
        axes.plot([], [], "-", color=scene.palette.size(N), linewidth=2, label=f"N = {count(N)}")
    start = min(C[0] for _, C, _ in lines)
    if scene.best is not None and scene.end > start:
        span = np.geomspace(start, scene.end, 60)
        axes.plot(span, scene.best.loss(span), color=LAW, linewidth=1.6, linestyle="--", label="law")
    lowest = [loss.min() for _, _, loss in lines]
    # A diverged run may end at thousands of nats: the picture is for the others.
    top = min(max(loss.max() for _, _, loss in lines), 3.5 * float(np.median(lowest)))
    margin = 0.06 * (top - min(lowest)) or 1.0
    axes.set_ylim(min(lowest) - margin, top + margin)
    log_axis(axes.xaxis)
    legend(axes)
    caption = f"{plural(len(lines), 'training')}, {kind} loss."
    path = save(canvas, scene.folder / "learning-curves.png", f"Learning curves. {caption}")
    return Figure("learning", caption, (Panel(path, "Loss against training compute, one line per training"),))


def _compute_axis(scene: Scene, axes: Any) -> None:
    axes.set_xlim(scene.grid[0], scene.grid[-1])
    log_axis(axes.xaxis)
    if scene.best is not None:
        extrapolation(axes, scene.end, scene.grid[-1])


def _big(scene: Scene, axes: Any, C: float, value: float) -> None:
    look = scene.palette.at(C)
    axes.plot(C, value, look.marker, color=look.colour, markersize=8.5, mec="white", mew=1, zorder=5)


def _band(axes: Any, x: np.ndarray, band: tuple[np.ndarray, np.ndarray], bottom: float, top: float) -> None:
    low, high = (np.clip(edge, bottom, top) for edge in band)
    axes.fill_between(x, low, high, color=LAW, alpha=0.16, linewidth=0)
