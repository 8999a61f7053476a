"""How to spend compute: isoFLOP curves and their minima, the best N and the best D/N for every C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from reducible.tasks.fit.result import Allocation, Estimate, Floats, IsoFlop
from reducible.tasks.report.scene import Figure, Panel, Scene
from reducible.tasks.report.style import (
    INK,
    LAW,
    extrapolation,
    finite,
    hollow,
    legend,
    log_axis,
    panel,
    save,
    write_name,
)
from reducible.tasks.words import exact, listed, power_of_ten


def isoflop(scene: Scene) -> Figure:
    """Loss against N at each budget, with the window, the parabola and its minimum."""
    points, runs = scene.fit.frontier.points, {run.name: run for run in scene.fit.used}
    budgets = [(point, [runs[name] for name in point.runs if name in runs]) for point in points]
    losses = [run.loss for _, mine in budgets for run in mine]
    losses += [p.loss.value for p in scene.minima if p.loss is not None] if losses else []
    if not losses:
        why = f"No budget holds runs to draw an isoFLOP curve through. {scene.fit.frontier.verdict}"
        return Figure("isoflop", missing=why.strip())
    canvas, axes = panel("IsoFLOP curves", _size_label(scene), f"loss ({scene.nats})")
    margin = 0.08 * (max(losses) - min(losses) or 1.0)
    bottom, top = min(losses) - margin, max(losses) + margin
    for point, mine in budgets:
        look, N = scene.palette.at(point.C), [run.N for run in mine]
        axes.plot(N, [r.loss for r in mine], look.marker, color=look.colour, markersize=5, label=look.label)
        if point.curve is not None and N:
            _parabola(axes, point, look.colour, [*N, *point.window])
        if point in scene.minima:
            assert point.N is not None and point.loss is not None
            _star(axes, point.N, point.loss, look.colour)
    hollow(axes, scene.palette, [(run, run.N, run.loss) for run in scene.excluded], top)
    axes.set_ylim(bottom, top)
    log_axis(axes.xaxis, "count")
    for run in scene.excluded if len(scene.excluded) <= 8 else ():
        write_name(axes, run, run.N, min(run.loss, top))
    legend(axes)
    caption = _caption_of_minima(scene)
    path = save(canvas, scene.folder / "isoflop.png", f"IsoFLOP curves. {caption}")
    return Figure("isoflop", caption, (Panel(path, "Loss against model size, one curve per compute budget"),))


def _caption_of_minima(scene: Scene) -> str:
    parts = [f"{power_of_ten(p.C)} FLOPs: N* = {exact(p.N.value)}" for p in scene.minima if p.N is not None]
    caption = f"{'; '.join([*parts, scene.sample])}"
    if lost := [run.name for run in scene.fit.excluded if run not in scene.excluded]:
        caption += f" Without a finite loss, so not drawn: {listed(lost, 12)}."
    refused = [f"{power_of_ten(p.C)} FLOPs: {p.refused}" for p in scene.fit.frontier.points if p.refused]
    if refused:
        caption += f" No minimum at {'; '.join(refused)}."
    return caption


def allocation(scene: Scene) -> Figure:
    """N*(C) and D*/N* with bands; extrapolation marked."""
    given = [a for a in (scene.fit.allocation, scene.fit.isoflop) if a is not None]
    if not given and not scene.minima:
        return Figure(
            "allocation",
            missing="Neither a law in N and D nor a trusted minimum: these runs do not say how N grows with C.",
        )
    size = _panel(
        scene,
        ("Compute-optimal size", f"best {_size_label(scene)}*", "optimal-size.png"),
        lambda a, C: a.N(C),
        lambda a, C: a.N_draws(C),
        lambda point: point.N,
    )
    units = f"{scene.unit}s per parameter"
    balance = _panel(
        scene,
        (units.capitalize(), f"best {units}, D*/N*", "optimal-balance.png"),
        lambda a, C: a.D(C) / a.N(C),
        lambda a, C: a.D_draws(C) / a.N_draws(C),
        _balance,
    )
    formulas = [
        f"{_origin(a)}: N* = {exact(a.n)} C^{exact(a.a.value)}, D* = {exact(a.d)} C^{exact(a.b.value)}" for a in given
    ]
    return Figure("allocation", "; ".join([*formulas, scene.sample]), (size, balance))


def _panel(
    scene: Scene,
    words: tuple[str, str, str],
    value: Callable[[Allocation, Floats], Floats],
    draws: Callable[[Allocation, Floats], Floats],
    measured: Callable[[IsoFlop], Estimate | None],
) -> Panel:
    title, label, file = words
    canvas, axes = panel(title, "training compute C (FLOPs)", label)
    grid, shown = scene.grid, []
    for given, colour, style in ((scene.fit.allocation, LAW, "-"), (scene.fit.isoflop, INK, "--")):
        if given is None or not np.isfinite(line := value(given, grid)).all():
            continue
        shown += [*line]
        axes.plot(grid, line, style, color=colour, linewidth=1.8, label=f"{_origin(given)}, 95 % band")
        if len(given.draws):
            low, high = np.nanpercentile(draws(given, grid), [2.5, 97.5], axis=0)
            # A wild band may leave the picture; it must not flatten the lines.
            shown += [*np.maximum(low, line.min() / 30), *np.minimum(high, line.max() * 30)]
            axes.fill_between(grid, low, high, color=colour, alpha=0.14, linewidth=0)
    for point in scene.minima:
        if (estimate := measured(point)) is not None:
            shown += [estimate.value, min(estimate.high, 30 * estimate.value), max(estimate.low, estimate.value / 30)]
            _star(axes, Estimate(point.C), estimate, scene.palette.at(point.C).colour)
    if positive := [v for v in finite(shown) if v > 0]:
        axes.set_ylim(min(positive) / 1.4, max(positive) * 1.4)
    axes.set_xlim(grid[0], grid[-1])
    log_axis(axes.xaxis)
    log_axis(axes.yaxis, "count")
    extrapolation(axes, scene.end, grid[-1])
    legend(axes)
    path = save(canvas, scene.folder / file, f"{title}. {scene.sample}")
    return Panel(path, f"{title} against training compute, with bands; extrapolation is shaded")


def _size_label(scene: Scene) -> str:
    return "parameters N" if scene.fit.counts == "parameters" else "parameters without embeddings N"


def _origin(allocation: Allocation) -> str:
    return "from the law" if allocation.approach == "law" else "through the minima"


def _balance(point: IsoFlop) -> Estimate | None:
    """D*/N* of a minimum. At one budget a larger N* means a smaller D*, so the ends change places."""
    N, D = point.N, point.D
    return None if N is None or D is None else Estimate(D.value / N.value, D.low / N.high, D.high / N.low)


def _parabola(axes: Any, point: IsoFlop, colour: str, sizes: list[float]) -> None:
    whole, window = np.geomspace(min(sizes), max(sizes), 80), np.geomspace(*point.window, 60)
    axes.plot(whole, point.parabola(whole), color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    axes.plot(window, point.parabola(window), color=colour, linewidth=1.9)


def _star(axes: Any, x: Estimate, y: Estimate, colour: str) -> None:
    if np.isfinite(x.low) and np.isfinite(x.high):
        axes.hlines(y.value, x.low, x.high, color=colour, linewidth=1.6, zorder=4)
    if np.isfinite(y.low) and np.isfinite(y.high):
        axes.vlines(x.value, y.low, y.high, color=colour, linewidth=1.6, zorder=4)
    axes.plot(x.value, y.value, "*", color=colour, markersize=13, mec="white", mew=0.9, zorder=6)
