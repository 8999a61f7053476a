"""Pictures of forecasts and of piano rolls."""

from typing import Any

import numpy as np

from reducible.tasks.evaluate.forecast_scores import LEVELS, Forecast
from reducible.tasks.evaluate.forecasts import Windows
from reducible.tasks.workflow.record import Record

CHANNELS = 4
"""The most channels drawn of a forecast."""
NAMES = {"forecast": "model", "last_value": "last value", "train_mean": "mean of the train part"}


def draw_forecasts(dataset: Any, given: Windows, forecast: Forecast, count: int, record: Record) -> None:
    """Draws the given steps, the model's forecast and the values that followed, in the data's own units."""
    pyplot = _pyplot()
    N, horizon, channels = given.future_NHC.shape
    rows, columns = min(count, N), min(channels, CHANNELS)
    if not rows:
        return
    shown = [i * N // rows for i in range(rows)]
    quantiles = {share: dataset.in_units(forecast.quantile(share)) for share in _shares()}
    past_NTC = dataset.in_units(np.where(given.batch["observed"], given.batch["values"], np.nan))
    future_NHC = dataset.in_units(np.where(given.counted_NHC, given.future_NHC, np.nan))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(max(7.0, 4.5 * columns), 2.6 * rows), layout="constrained", squeeze=False
    )
    for row, number in enumerate(shown):
        length = int(given.batch["steps"][number].sum())
        first = max(0, length - 4 * horizon)
        behind, ahead = np.arange(first - length, 0) + 1, np.arange(horizon) + 1
        for channel in range(columns):
            panel = axes[row][channel]
            for level, alpha in zip(sorted(LEVELS, reverse=True), (0.15, 0.25, 0.4), strict=True):
                low, high = (quantiles[share][number, :, channel] for share in _shares_of(level))
                panel.fill_between(ahead, low, high, color="tab:blue", alpha=alpha, lw=0, label=f"{level:.0%}")
            panel.plot(ahead, quantiles[0.5][number, :, channel], color="tab:blue", lw=1, label="median")
            panel.plot(behind, past_NTC[number, first:length, channel], color="black", lw=1, label="given")
            came = future_NHC[number, :, channel]
            panel.plot(ahead, came, color="tab:red", lw=1, marker=".", ms=3, label="what came")
            panel.axvline(0.5, color="grey", lw=0.5)
            panel.grid(alpha=0.3)
            panel.set_title(f"{given.names[number]}: {dataset.columns[channel]}", fontsize=9)
            if row == rows - 1:
                panel.set_xlabel("steps ahead")
    axes[0][0].legend(fontsize=7, loc="upper left")
    _save(pyplot, figure, record, "forecasts.png")


def draw_scores(numbers: dict[str, Any], record: Record) -> None:
    """Draws CRPS against steps ahead, with the baselines."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in NAMES.items():
        scores = numbers[f"{name}_crps_by_step"]
        axes.plot(range(1, len(scores) + 1), scores, label=label, marker=".")
    axes.set(xlabel="steps ahead", ylabel="CRPS (lower is better)", ylim=(0, None))
    axes.set_title("How far ahead is the model better than the baselines?")
    axes.legend()
    axes.grid(alpha=0.3)
    _save(pyplot, figure, record, "crps_by_step.png")


def draw_rolls(titles: list[str], rolls: list[np.ndarray], lowest: int, border: int, record: Record) -> None:
    """Draws rolls (steps, keys) one above the other, with a line at `border`, where a continuation begins."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(len(rolls), 1, figsize=(9, 2.2 * len(rolls)), layout="constrained", squeeze=False)
    sounding = np.flatnonzero(np.max([roll.max(axis=0) for roll in rolls], axis=0) > 0)
    low, high = (int(sounding.min()), int(sounding.max())) if len(sounding) else (0, rolls[0].shape[1] - 1)
    for panel, title, roll in zip(axes[:, 0], titles, rolls, strict=True):
        extent = (0.5, len(roll) + 0.5, lowest + low - 0.5, lowest + high + 0.5)
        panel.imshow(
            roll[:, low : high + 1].T, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1, extent=extent
        )
        panel.axvline(border + 0.5, color="tab:red", lw=1)
        panel.set_title(title, fontsize=9)
        panel.set_ylabel("MIDI note" if lowest > 1 else "channel")
    axes[-1, 0].set_xlabel("step")
    _save(pyplot, figure, record, "rolls.png")


def _shares() -> list[float]:
    return [0.5, *(share for level in LEVELS for share in _shares_of(level))]


def _shares_of(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, record: Record, name: str) -> None:
    figure.savefig(record.figures / name, dpi=120)
    pyplot.close(figure)
