"""Whether to believe the fit: residuals, the profile of E, the back-test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.ticker import FuncFormatter

from reducible.tasks.fit.result import Run
from reducible.tasks.report.intervals import interval
from reducible.tasks.report.scene import Figure, Panel, Scene
from reducible.tasks.report.style import (
    FAINT,
    INK,
    LAW,
    NO_BUDGET,
    dots,
    finite,
    legend,
    log_axis,
    panel,
    save,
    write_name,
)
from reducible.tasks.words import exact, percent, plural, power_of_ten


def residuals(scene: Scene) -> Figure:
    """Log residuals against C, N and D/N."""
    health = scene.fit.health
    runs = [run for run in (*scene.fit.used, *scene.excluded) if np.isfinite(_residual(run))]
    used = [abs(_residual(run)) for run in runs if run.used]
    if not used:
        return Figure("residuals", missing="No law in N and D was fitted, so there are no residuals.")
    # One bad run must not flatten the others: beyond six deviations it is drawn at the edge, as an arrow.
    limit = min(max(used), 6 * health.residual_deviation if health.residual_deviation > 0 else max(used))
    limit = max(limit, 1e-3)
    against: list[tuple[str, Callable[[Run], float], str]] = [
        ("compute", lambda r: r.C, "training compute C (FLOPs)"),
        ("size", lambda r: r.N, "parameters N"),
        ("balance", lambda r: r.D / r.N, f"{scene.unit}s per parameter D/N"),
    ]
    panels = []
    for what, x, label in against:
        known = [run for run in runs if x(run) > 0]  # a law of compute alone may have runs of unknown N or D
        if known:
            panels.append(_residual_panel(scene, known, limit, what, x, label))
    caption = (
        f"Robust standard deviation {exact(health.residual_deviation)}; largest {exact(health.residual_largest)} "
        f"({health.residual_largest_run}). {scene.sample}"
    )
    return Figure("residuals", caption, tuple(panels))


def _residual_panel(
    scene: Scene, runs: list[Run], limit: float, against: str, x: Callable[[Run], float], label: str
) -> Panel:
    canvas, axes = panel(f"Residuals against {against}", label, "log residual (× 100)")
    spread, edge = 100 * scene.fit.health.residual_deviation, 115 * limit or 1.0
    if np.isfinite(spread):
        axes.axhspan(-spread, spread, color="#dfe3e8", alpha=0.6, zorder=0, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.9)
    places = [(run, x(run), float(np.clip(100 * _residual(run), -edge, edge))) for run in runs]
    inside = [place for place in places if abs(place[2]) < edge]
    dots(axes, scene.palette, [place for place in inside if place[0].used], markersize=5.5)
    dots(axes, scene.palette, [place for place in inside if not place[0].used], markersize=5.5, mfc="white")
    for run, at, y in places:
        look, face = scene.palette.look(run), "white" if not run.used else None
        if abs(y) >= edge:
            axes.plot(at, y, "^" if y > 0 else "v", color=look.colour, mfc=face or look.colour, markersize=6.5)
    axes.set_ylim(-edge * 1.08, edge * 1.08)
    log_axis(axes.xaxis, "power" if against == "compute" else "count")
    for run, at, y in places:
        if run.name == scene.fit.health.residual_largest_run:
            write_name(axes, run, at, y)
    path = scene.folder / f"residuals-{against}.png"
    save(canvas, path, f"Log residuals against {label}. {scene.formula} {scene.sample}")
    return Panel(path, f"Log residuals of the law against {label}")


def profile(scene: Scene) -> Figure:
    """The objective against E, with the threshold of its 95 % interval."""
    found = scene.fit.profile
    if found is None or len(finite(found.objective)) < 2:
        return Figure("profile", missing="There is no profile of E: no law was fitted to these runs.")
    canvas, axes = panel("Profile of E", f"irreducible loss E ({scene.nats})", "objective above its minimum")
    E, above = np.array(found.E), np.array(found.objective) - found.minimum
    threshold = found.threshold - found.minimum
    known = np.isfinite(threshold) and threshold > 0
    above = above / (threshold if known else np.nanmax(above) / 3 or 1.0)
    low = found.interval.low if np.isfinite(found.interval.low) else float(E.min())
    high = found.interval.high if np.isfinite(found.interval.high) else float(E.max())
    axes.axvspan(low, high, color="#0b6e99", alpha=0.13, linewidth=0, label="95 % by profile")
    axes.plot(E, above, color=LAW, linewidth=1.8, label="profile")
    if known:
        axes.axhline(1.0, color=INK, linewidth=1.0, linestyle="--", label="threshold, here 1")
    axes.plot(found.interval.value, 0, "o", color=LAW, markersize=6, zorder=5)
    if np.isfinite([found.bootstrap.low, found.bootstrap.high]).all():
        ends, style = (found.bootstrap.low, found.bootstrap.high), {"color": FAINT, "linewidth": 3}
        axes.hlines(-0.25, *ends, **style, label="95 % by bootstrap")
    near = E[above <= 5]
    left, right = (near.min(), near.max()) if len(near) > 3 else (2 * low - high, 2 * high - low)
    spare = max(0.05 * (right - left), 1e-3)
    axes.set_xlim(left - spare, right + spare)
    axes.set_ylim(-0.5, 4.2)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", nbins=6)
    legend(axes)
    path = save(canvas, scene.folder / "profile-of-E.png", f"Profile of E. {scene.formula} {scene.sample}")
    caption = (
        f"E = {exact(found.interval.value)}; by profile {interval(found.interval, exact)}; by bootstrap "
        f"{interval(found.bootstrap, exact)}. Threshold {exact(found.threshold)}, minimum {exact(found.minimum)}. "
        f"{scene.sample}"
    )
    return Figure("profile", caption, (Panel(path, "Objective of the fit against E, with the threshold"),))


def back_test(scene: Scene) -> Figure:
    """Signed error of predictions against the extrapolation ratio."""
    tests = [test for test in scene.fit.back_tests if np.isfinite(test.error) and test.ratio > 0]
    if not tests:
        return Figure(
            "back-test",
            missing="Too few budgets to fit on cheaper runs and predict more expensive ones: the law is untested.",
        )
    canvas, axes = panel("Back-test", "extrapolation: C / largest C fitted", "prediction / actual − 1 (%)")
    axes.axhline(0, color=INK, linewidth=0.9)
    cuts = sorted({test.below for test in tests})
    for i, below in enumerate(cuts):
        mine, look = [test for test in tests if test.below == below], scene.palette.at(below)
        grey = str(0.15 + 0.55 * i / max(len(cuts) - 1, 1))
        colour, marker = (grey, "o") if look is NO_BUDGET else (look.colour, look.marker)
        axes.plot(
            [test.ratio for test in mine],
            [100 * test.error for test in mine],
            marker,
            color=colour,
            markersize=6,
            alpha=0.85,
            label=f"fitted up to {power_of_ten(below)}" if i < 9 else None,
        )
    sizes = [abs(test.error) for test in tests]
    edge = max(115 * max(sizes), 0.1)
    axes.set_ylim(-edge, edge)
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−")))
    log_axis(axes.xaxis, "plain")
    legend(axes)
    caption = (
        f"{plural(len(tests), 'prediction')} from {plural(len(cuts), 'fit')}; median absolute error "
        f"{percent(float(np.median(sizes)))}, largest {percent(max(sizes))}."
    )
    path = save(canvas, scene.folder / "back-test.png", f"Back-test. {caption}")
    panel_ = Panel(path, "Error of predictions against the extrapolation ratio")
    return Figure("back-test", caption, (panel_,))


def _residual(run: Run) -> float:
    return np.nan if run.residual is None else run.residual
