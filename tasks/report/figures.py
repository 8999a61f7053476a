"""All figures of the report on one fit, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reducible.tasks.fit.result import Fit
from reducible.tasks.report import allocation_figures, health_figures, loss_figures
from reducible.tasks.report.scene import Curve, Figure, Scene
from reducible.tasks.report.style import styled


def draw(fit: Fit, folder: Path, unit: str = "token", curves: Sequence[Curve] = ()) -> list[Figure]:
    """Writes all PNG files into `folder` and returns the figures in reading order."""
    scene = Scene(fit, folder, unit)
    with styled(), np.errstate(all="ignore"):
        return [
            loss_figures.loss(scene),
            allocation_figures.isoflop(scene),
            allocation_figures.allocation(scene),
            health_figures.residuals(scene),
            health_figures.profile(scene),
            health_figures.back_test(scene),
            *([loss_figures.learning(scene, curves)] if curves else []),
        ]
