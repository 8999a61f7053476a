"""The parts of a picture of a report, and what every picture is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reducible.tasks.fit.best_loss import BestLoss, best_loss
from reducible.tasks.fit.result import Fit, Floats, IsoFlop, Run
from reducible.tasks.report.style import Palette, finite
from reducible.tasks.words import exact, listed, plural


@dataclass(frozen=True)
class Curve:
    """One training: loss in nats per target unit after C FLOPs, N parameters."""

    name: str
    N: float
    C: tuple[float, ...]
    loss: tuple[float, ...]
    kind: str = "validation"  # or "training": which loss


@dataclass(frozen=True)
class Panel:
    """One PNG and what it shows, for those who cannot see it."""

    path: Path
    alternative: str


@dataclass(frozen=True)
class Figure:
    """Panels that are read together; without panels, `missing` says why there is nothing to draw.

    How to read it is prose and stands in report.html under the same key.
    """

    key: str
    caption: str = ""
    panels: tuple[Panel, ...] = ()
    missing: str = ""


class Scene:
    """What every picture needs: the fit, how the best loss falls with C, the colours, where to write."""

    def __init__(self, fit: Fit, folder: Path, unit: str) -> None:
        self.fit = fit
        self.folder = folder
        self.unit = unit
        self.nats = f"nats per {unit}"
        self.palette = Palette(fit)
        self.best: BestLoss | None = best_loss(fit)
        computes = finite(run.C for run in (fit.used or fit.runs) if run.C > 0)
        self.start = min(computes, default=1.0)
        self.end = max(computes, default=10.0)
        # C from below the cheapest run to ten times the most expensive one that was used.
        self.grid: Floats = np.geomspace(self.start / 1.5, 10 * self.end, 60)

    @property
    def minima(self) -> list[IsoFlop]:
        """The budgets whose minimum can be trusted."""
        points = self.fit.frontier.points
        return [p for p in points if p.refused is None and p.N is not None and p.loss is not None]

    @property
    def excluded(self) -> list[Run]:
        """Excluded runs that have a place in a picture."""
        return [run for run in self.fit.excluded if np.isfinite(run.loss) and run.N > 0 and run.C > 0]

    @property
    def sample(self) -> str:
        """The n of a caption, and which runs were left out."""
        fit = self.fit
        text = f"n = {len(fit.used)} of {plural(len(fit.runs), 'run')}"
        if fit.excluded:
            text += f"; excluded: {listed([run.name for run in fit.excluded], 12)}"
        return text + "."

    @property
    def formula(self) -> str:
        """The parameters behind the line, every digit."""
        law, frontier = self.fit.law, self.fit.frontier
        if self.best is None:
            return ""
        if self.best.source == "law" and law is not None:
            named = law.parameters
            form, where = (
                law.form.formula,
                "the line follows its best N and D" if law.form.splits else "the line shows it",
            )
        else:
            assert frontier.E is not None and frontier.K is not None and frontier.gamma is not None
            named = {"E": frontier.E, "K": frontier.K, "gamma": frontier.gamma}
            form, where = "L(C) = E + K C^-gamma", "the line goes through the minima of the budgets"
        given = ", ".join(f"{name} = {exact(estimate.value)}" for name, estimate in named.items())
        return f"{form} with {given}; {where}."
