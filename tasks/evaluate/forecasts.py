"""Forecasts of held-out series: where they begin, what they are given, and the baselines.

A forecast begins inside a series of the split and is given up to `sequence` steps before it, of an earlier split too:
where series were cut in time, the train part's end stands before the validation part. Axes: N forecasts, T steps
given, H steps ahead, C channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reducible.tasks.evaluate.forecast_scores import (
    Forecast,
    NormalForecast,
    SampledForecast,
    coverage,
    normal_log_density,
)

FORECASTS = 256
"""The most forecasts, spread over the split."""
DRAWS = 200
"""Draws from a model whose forecasts have no closed form."""
PARTICLES_A_DRAW = 5
"""Particles of the present for each draw of the future. With too few, a poor encoder makes the forecasts score worse
than the model's own."""
HELD = 2**22
"""The most numbers that a step of a model's draws takes at once."""
EARLIER = {"validation": ("train",), "test": ("train", "validation")}


@dataclass(frozen=True)
class Windows:
    """What forecasts are given, and the values that followed."""

    batch: dict[str, np.ndarray]
    """A batch as in docs/models.md; T is the length of the longest window."""
    future_NHC: np.ndarray
    counted_NHC: NDArray[np.bool_]
    """Whether the value was observed."""
    names: list[str]
    """The names of the series."""


def windows(dataset: Any, split: str, sequence: int, horizon: int) -> Windows | None:
    """Up to FORECASTS windows; None if every series is too short, or no value after a window is known.

    Forecasts of a series follow each other without overlap. They span `horizon` steps, or a quarter of the longest
    series if that is less. Each is given at least as many steps as it spans, or half a window, because fewer steps
    say too little about a series.
    """
    own = dataset.examples("series", split, sequence)
    before = [dataset.examples("series", earlier, sequence) for earlier in EARLIER[split]]
    earlier_names = [dataset.content["series"][earlier] for earlier in EARLIER[split]]
    joined = []
    for number, name in enumerate(dataset.content["series"][split]):
        # If two splits have a series of the same name, it was cut in time.
        parts = [
            examples.series(names.index(name))
            for examples, names in zip(before, earlier_names, strict=True)
            if name in names
        ]
        given = sum(len(values) for values, _ in parts)
        parts.append(own.series(number))
        values, observed = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        joined.append((name, given, values, observed))
    longest = max((len(values) - given for _, given, values, _ in joined), default=0)
    horizon = min(horizon, max(1, longest // 4))
    least = max(1, min(horizon, sequence // 2))
    places = [
        (which, origin)
        for which, (_, given, values, _) in enumerate(joined)
        for origin in range(max(given, least), len(values) - horizon + 1, horizon)
    ]
    if not places:
        return None
    count = min(FORECASTS, len(places))
    chosen = [places[i * len(places) // count] for i in range(count)]
    lengths = [min(sequence, origin) for _, origin in chosen]
    N, T, C = len(chosen), max(lengths), own.channels
    values_NTC, observed_NTC = np.zeros((N, T, C), np.float32), np.zeros((N, T, C), bool)
    future_NHC, counted_NHC = np.zeros((N, horizon, C)), np.zeros((N, horizon, C), bool)
    for row, ((which, origin), length) in enumerate(zip(chosen, lengths, strict=True)):
        _, _, values, observed = joined[which]
        values_NTC[row, :length] = values[origin - length : origin]
        observed_NTC[row, :length] = observed[origin - length : origin]
        future_NHC[row] = values[origin : origin + horizon]
        counted_NHC[row] = observed[origin : origin + horizon]
    if not counted_NHC.any():
        return None
    steps_NT = np.arange(T) < np.array(lengths)[:, None]
    batch = {"values": values_NTC, "observed": observed_NTC, "steps": steps_NT}
    return Windows(batch, future_NHC, counted_NHC, [joined[which][0] for which, _ in chosen])


def forecast(model: Any, given: Windows, seed: int) -> Forecast:
    """The model's forecast of the steps after each window."""
    import torch

    torch.manual_seed(seed)
    N, horizon, channels = given.future_NHC.shape
    with torch.inference_mode():
        predicted = model.predict(on_device(model, given.batch), horizon)
    if predicted is not None:
        mean, deviation = predicted
        return NormalForecast(mean.cpu().numpy(), deviation.cpu().numpy())
    rows = max(1, HELD // (DRAWS * PARTICLES_A_DRAW * 4 * max(model.config.width, channels)))
    drawn = []
    for at in range(0, N, rows):
        part = {name: array[at : at + rows] for name, array in given.batch.items()}
        with torch.inference_mode():
            drawn.append(model.forecast(on_device(model, part), horizon, DRAWS, PARTICLES_A_DRAW))
    return SampledForecast(torch.cat(drawn, dim=1).double().cpu().numpy())


def log_scores(model: Any, given: Windows, particles: int, seed: int) -> np.ndarray:
    """(N,) -log p(all steps that followed | the given steps) in nats: log p of all steps minus log p of the given ones.

    If the model only estimates likelihoods, both estimates use the same random numbers, so that for a causal encoder
    the given steps cancel exactly. The remaining error makes the score worse on average, not better.
    """
    import torch

    N, horizon, channels = given.future_NHC.shape
    lengths_N = given.batch["steps"].sum(1)
    T = given.batch["steps"].shape[1]
    both = {
        "values": np.zeros((N, T + horizon, channels), np.float32),
        "observed": np.zeros((N, T + horizon, channels), bool),
        "steps": np.arange(T + horizon) < (lengths_N + horizon)[:, None],
    }
    alone = {name: array.copy() for name, array in both.items()}
    alone["steps"] = np.arange(T + horizon) < lengths_N[:, None]
    for row, length in enumerate(lengths_N):
        for batch in (both, alone):
            batch["values"][row, :length] = given.batch["values"][row, :length]
            batch["observed"][row, :length] = given.batch["observed"][row, :length]
        both["values"][row, length : length + horizon] = given.future_NHC[row]
        both["observed"][row, length : length + horizon] = given.counted_NHC[row]
    rows = max(1, HELD // (particles * 4 * max(model.config.width, channels)))
    scores = []
    for at in range(0, N, rows):
        nats = []
        for batch in (both, alone):
            torch.manual_seed(seed + at)
            part = on_device(model, {name: array[at : at + rows] for name, array in batch.items()})
            with torch.inference_mode():
                nats.append(model.log_likelihood(part, particles, method="particle").cpu().numpy())
        scores.append(nats[1] - nats[0])
    return np.concatenate(scores)


class Baselines:
    """Baselines without a model: a random walk from the last value seen, and the train part's mean; both normal.

    The walk's steps have the variance of the train part's one-step changes, so that its intervals widen with the root
    of the steps ahead.
    """

    def __init__(self, dataset: Any, sequence: int) -> None:
        train = dataset.examples("series", "train", sequence)
        values = np.where(train.observed, train.values, np.nan).astype(np.float64)
        self.mean_C = np.nanmean(values, axis=0)
        self.deviation_C = np.maximum(np.nanstd(values, axis=0), 1e-9)
        changes = np.diff(values, axis=0)
        changes[train.starts[1:-1] - 1] = np.nan  # from the end of a series to the start of the next
        # If no two neighbours of a channel are known, its spread takes the place of the changes.
        known_C = np.isfinite(changes).any(axis=0)
        step_C = np.sqrt(np.nanmean(np.where(known_C, changes, 1.0) ** 2, axis=0))
        self.step_C = np.maximum(np.where(known_C, step_C, self.deviation_C), 1e-9)

    def last_value(self, given: Windows) -> NormalForecast:
        origin_NC, age_NC = self._last(given)
        ahead_H = np.arange(1, given.future_NHC.shape[1] + 1)
        steps_NHC = age_NC[:, None] + ahead_H[None, :, None]
        mean_NHC = np.broadcast_to(origin_NC[:, None], steps_NHC.shape)
        return NormalForecast(mean_NHC, self.step_C * np.sqrt(steps_NHC))

    def train_mean(self, given: Windows) -> NormalForecast:
        shape = given.future_NHC.shape
        return NormalForecast(np.broadcast_to(self.mean_C, shape), np.broadcast_to(self.deviation_C, shape))

    def last_value_log_scores(self, given: Windows) -> np.ndarray:
        """(N,) log score of all steps together. A walk is scored step by step, each from the last known value."""
        at_NC, age_NC = self._last(given)
        total_N = np.zeros(len(at_NC))
        for step in range(given.future_NHC.shape[1]):
            age_NC = age_NC + 1
            y_NC, counted_NC = given.future_NHC[:, step], given.counted_NHC[:, step]
            nats_NC = -normal_log_density(y_NC, at_NC, self.step_C * np.sqrt(age_NC))
            total_N += np.where(counted_NC, nats_NC, 0.0).sum(1)
            at_NC, age_NC = np.where(counted_NC, y_NC, at_NC), np.where(counted_NC, 0, age_NC)
        return total_N

    def train_mean_log_scores(self, given: Windows) -> np.ndarray:
        nats_NHC = -normal_log_density(given.future_NHC, self.mean_C, self.deviation_C)
        return np.where(given.counted_NHC, nats_NHC, 0.0).sum((1, 2))

    def _last(self, given: Windows) -> tuple[np.ndarray, np.ndarray]:
        """The last value seen in each channel and how many steps before the window's end it lies."""
        observed_NTC, lengths_N = given.batch["observed"], given.batch["steps"].sum(1)
        N, T, C = observed_NTC.shape
        last_NC = T - 1 - np.argmax(observed_NTC[:, ::-1], axis=1)
        seen_NC = observed_NTC.any(axis=1)
        value_NC = np.take_along_axis(given.batch["values"], last_NC[:, None], axis=1)[:, 0].astype(np.float64)
        # A channel never seen starts at its mean, as uncertain as after a whole window.
        return np.where(seen_NC, value_NC, self.mean_C), np.where(seen_NC, lengths_N[:, None] - 1 - last_NC, T)


def scored(model: Any, dataset: Any, given: Windows, sequence: int, particles: int, seed: int) -> dict[str, Any]:
    """Numbers of the model and of both baselines, in the units that the model sees (standardised if the data are)."""
    baselines = Baselines(dataset, sequence)
    y, counted = given.future_NHC, given.counted_NHC
    values_N = counted.sum((1, 2))
    total = max(1, int(values_N.sum()))
    contestants: dict[str, tuple[Forecast, np.ndarray]] = {
        "forecast": (forecast(model, given, seed), log_scores(model, given, particles, seed)),
        "last_value": (baselines.last_value(given), baselines.last_value_log_scores(given)),
        "train_mean": (baselines.train_mean(given), baselines.train_mean_log_scores(given)),
    }
    numbers: dict[str, Any] = {"forecasts": len(y), "horizon": y.shape[1], "forecast_values": total}
    for name, (one, nats_N) in contestants.items():
        crps_NHC = np.where(counted, one.crps(y), 0.0)
        numbers[f"{name}_crps"] = float(crps_NHC.sum() / total)
        numbers[f"{name}_log_score"] = float(nats_N.sum() / total)
        numbers[f"{name}_crps_by_step"] = (crps_NHC.sum((0, 2)) / np.maximum(1, counted.sum((0, 2)))).tolist()
        for level, share in coverage(one, y, counted).items():
            numbers[f"{name}_coverage_{round(100 * level)}"] = share
        if name == "forecast":
            # Ratio estimator: windows are the draws, values inside one are not.
            for what, sums_N in (("crps", crps_NHC.sum((1, 2))), ("log_score", nats_N)):
                centred_N = sums_N - numbers[f"{name}_{what}"] * values_N
                numbers[f"{name}_{what}_standard_error"] = float(np.sqrt((centred_N**2).sum()) / total)
    return numbers


def on_device(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    device = next(iter(model.state_dict().values())).device
    return {name: torch.as_tensor(array).to(device) for name, array in batch.items()}
