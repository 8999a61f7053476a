"""Evaluation of a model of series: loss, likelihood, forecasts, and a certificate if the true model is known."""

import json
from typing import Any

import numpy as np
from pydantic import Field

from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.certified_training import certificate_note, certified, true_model
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.evaluate.forecasts import Windows, forecast, on_device, scored, windows
from reducible.tasks.evaluate.series_pictures import NAMES, draw_forecasts, draw_rolls, draw_scores
from reducible.tasks.workflow.record import Record

STEPS_AT_ONCE = 8192
BOUND_DRAWS = 10
"""Draws of the latents: the -ELBO of a single draw varies by chance."""
LOWEST_KEY = 21
"""The MIDI note of a piano's first key (data/series_files.py)."""
PIANO = 88
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
LONGEST_SAMPLE = 200
SHARES = (0.1, 0.5, 0.9)


class SeriesSettings(EvaluateSpec):
    """Settings for a model of series."""

    importance_samples: int = Field(default=100, ge=1)
    """K of the importance-weighted estimate of the likelihood."""
    horizon: int = Field(default=24, ge=1)
    """The number of steps to forecast."""


def evaluate(model: Any, dataset: Any, trained: dict[str, Any], spec: SeriesSettings, record: Record) -> Evaluation:
    """Measures everything on up to `spec.units` steps of the split. Pictures go to the record."""
    sequence = trained["sequence"]
    batches = batches_of(dataset.examples("series", spec.split, sequence), spec.units)
    numbers = measure(model, dataset, batches, spec.importance_samples, spec.seed)
    truth, notes = true_model(dataset), []
    if truth is not None:
        try:
            numbers |= certified(model, truth, batches, numbers["loss"], numbers.get("bound_standard_error"))
            notes.append(certificate_note(numbers, model))
        except ValueError as error:
            notes.append(f"No certificate: {error}.")
    given = windows(dataset, spec.split, sequence, spec.horizon)
    if given is None:
        notes.append(f"No forecasts: every series of the {spec.split} split is too short.")
    elif numeric(model):
        numbers |= scored(model, dataset, given, sequence, spec.importance_samples, spec.seed)
        draw_forecasts(dataset, given, forecast(model, given, spec.seed), spec.samples, record)
        draw_scores(numbers, record)
        notes.append(forecast_note(numbers, dataset))
    elif spec.samples:
        continuations(model, dataset, given, spec, record)
        notes.append("Rolls: what followed, and the model's continuation after the red line.")
    (record.files / "evaluation.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return Evaluation(numbers, headline(numbers), "\n\n".join([note(numbers), *notes]))


def numeric(model: Any) -> bool:
    """Whether values are numbers on a line, not keys or classes."""
    return bool(model.numeric)


def batches_of(examples: Any, units: int | None) -> list[dict[str, np.ndarray]]:
    """Windows spread over the split, about `units` steps in all, in the form that data gives them."""
    from reducible.data.batches import fixed

    mean_length = float(np.mean(examples.lengths))
    count = len(examples) if units is None else max(1, min(len(examples), int(units / mean_length)))
    rows = max(1, STEPS_AT_ONCE // examples.sequence)
    return [examples.batch(indices) for indices in fixed(examples, count, rows)]


def measure(
    model: Any, dataset: Any, batches: list[dict[str, np.ndarray]], particles: int, seed: int
) -> dict[str, Any]:
    """Nats per step: `loss` (-ELBO, or -log p if that is exact) with its parts, and estimates of -log p.

    The estimates improve with the number of particles and are above -log p on average. Standard errors are over
    windows, except that of the bound, which is over draws of latents.
    """
    import torch

    torch.manual_seed(seed)  # latents come from the default generator
    exact = model.exact
    methods = {"likelihood": "exact"} if exact else {"importance_weighted": "importance", "particle": "particle"}
    draws = 1 if exact else BOUND_DRAWS
    nats_K, observed = np.zeros(draws), 0
    parts: dict[str, float] = {}
    by_window: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    lengths: list[np.ndarray] = []
    offset = 0.0
    for arrays in batches:
        batch = on_device(model, arrays)
        with torch.inference_mode():
            for draw in range(draws):
                found = model(batch)
                nats_K[draw] += float(found.nats)
                for name, part in found.parts.items():
                    parts[name] = parts.get(name, 0.0) + float(part) / draws
            for name, method in methods.items():
                by_window[name].append(-model.log_likelihood(batch, particles, method=method).double().cpu().numpy())
        lengths.append(arrays["steps"].sum(1))
        observed += int(arrays["observed"].sum())
        offset += float((arrays["observed"].sum((0, 1)) * dataset.log_scale()).sum())
    lengths_N = np.concatenate(lengths).astype(np.float64)
    steps = int(lengths_N.sum())
    loss = float(nats_K.mean() / steps)
    numbers: dict[str, Any] = {"loss": loss, **{name: part / steps for name, part in parts.items()}}
    for name, values in by_window.items():
        nats_N = np.concatenate(values)
        mean = float(nats_N.sum() / steps)
        # Ratio estimator: windows are the draws, steps inside one are not. A single window has no spread.
        error = float(np.sqrt(((nats_N - mean * lengths_N) ** 2).sum()) / steps) if len(nats_N) > 1 else None
        if name != "likelihood":
            numbers[name] = mean
        numbers["loss_standard_error" if exact else f"{name}_standard_error"] = error
    if not exact:
        numbers["importance_samples"] = particles
        numbers["bound_standard_error"] = float(nats_K.std(ddof=1) / steps / draws**0.5)
    if numeric(model):
        numbers["loss_in_own_units"] = numbers["loss"] + offset / steps
    return numbers | {"units": steps, "observed_values": observed, "windows": len(lengths_N)}


def headline(numbers: dict[str, Any]) -> str:
    if "importance_weighted" in numbers:
        best = min(numbers["importance_weighted"], numbers["particle"])
        line = f"-ELBO {numbers['loss']:.4f} nats per step, -log p at most {best:.4f}"
    else:
        line = f"-log p {with_error(numbers['loss'], numbers['loss_standard_error'])} nats per step"
    if "gap" in numbers:
        line += f", {numbers['gap']:.4f} above the true model"
    if "forecast_crps" in numbers:
        line += f", CRPS {numbers['forecast_crps']:.4f} at {numbers['horizon']} steps"
    return line


def with_error(value: float, error: float | None) -> str:
    """The value and half its 95 % interval."""
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {1.96 * error:.4f}"


def note(numbers: dict[str, Any]) -> str:
    exact = "importance_weighted" not in numbers
    rows = [("-log p(x), exact" if exact else "-ELBO", numbers["loss"], numbers.get("loss_standard_error"))]
    if not exact:
        rows = [(f"-ELBO, mean of {BOUND_DRAWS} draws", numbers["loss"], numbers["bound_standard_error"])]
    for name, label in (("kl", "of it KL"), ("reconstruction", "of it reconstruction")):
        if name in numbers:
            rows.append((label, numbers[name], None))
    if not exact:
        K = numbers["importance_samples"]
        for name, label in (
            ("importance_weighted", f"-log p(x), {K} importance samples"),
            ("particle", f"-log p(x), {K} particles"),
        ):
            rows.append((label, numbers[name], numbers[f"{name}_standard_error"]))
    if numbers.get("loss_in_own_units", numbers["loss"]) != numbers["loss"]:
        rows.append(("the first, of values in their own units", numbers["loss_in_own_units"], None))
    lines = ["| nats per step | value |", "|---|---:|"]
    lines += [f"| {label} | {with_error(value, error)} |" for label, value, error in rows]
    total = f"{numbers['units']:,} steps in {numbers['windows']:,} window(s), {numbers['observed_values']:,} values"
    return "\n".join(lines) + f"\n\nEvaluated on {total}. ±: 95 %. An estimate of -log p lies above it, on average."


def forecast_note(numbers: dict[str, Any], dataset: Any) -> str:
    lines = [
        "### Forecasts",
        "",
        f"{numbers['forecasts']:,} of {numbers['horizon']} steps, {numbers['forecast_values']:,} values. CRPS and log "
        "score (nats a value, of all steps of a forecast together): lower is better. Intervals: share of the values "
        "inside.",
        "",
        "| | CRPS | log score | in 50 % | in 80 % | in 95 % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, label in NAMES.items():
        shares = " | ".join(f"{numbers[f'{name}_coverage_{level}']:.3f}" for level in (50, 80, 95))
        lines.append(f"| {label} | {numbers[f'{name}_crps']:.4f} | {numbers[f'{name}_log_score']:.4f} | {shares} |")
    deviation = dataset.content["deviation"]
    if any(one != 1 for one in deviation):
        scale = f", which is {deviation[0]:.6g}" if len(deviation) == 1 else ""
        lines += ["", f"CRPS is in units of a channel's deviation in the train part{scale}."]
    return "\n".join(lines)


# Keys and samples ---------------------------------------------------------------------------------------------------


def continuations(model: Any, dataset: Any, given: Windows, spec: SeriesSettings, record: Record) -> None:
    """Draws a window with what followed it, and below it the same window with the model's continuation."""
    import torch

    torch.manual_seed(spec.seed)
    length = int(given.batch["steps"][0].sum())
    first = {name: array[:1] for name, array in given.batch.items()}
    with torch.inference_mode():
        drawn_SHC = model.forecast(on_device(model, first), given.future_NHC.shape[1], spec.samples)[:, 0].cpu().numpy()
    past_TC = given.batch["values"][0, :length]
    rolls = [np.concatenate([past_TC, after_HC]) for after_HC in (given.future_NHC[0], *drawn_SHC)]
    titles = [given.names[0], *(f"drawn by the model, {number + 1}" for number in range(spec.samples))]
    lowest = LOWEST_KEY if dataset.content["channels"] == PIANO else 0
    draw_rolls(titles, [roll / max(1.0, float(roll.max())) for roll in rolls], lowest, length, record)


def sample(model: Any, dataset: Any, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
    """The continuation of a series: quantiles of every channel, or the notes of one draw.

    The prompt names the series. Without a prompt it is the first one.
    """
    import torch

    name, values, observed = whole_series(dataset, prompt.strip(), trained["sequence"])
    batch = {"values": values[None], "observed": observed[None], "steps": np.ones((1, len(values)), bool)}
    horizon = min(options.tokens, LONGEST_SAMPLE)
    torch.manual_seed(options.seed)
    draws = 1000 if numeric(model) else 1
    with torch.inference_mode():
        drawn_SHC = model.forecast(on_device(model, batch), horizon, draws)[:, 0].cpu().numpy()
    if not numeric(model):
        return "\n".join([f"{name}, from step {len(values) + 1} of what it was given", *map(_notes, drawn_SHC[0])])
    quantiles = dataset.in_units(np.quantile(drawn_SHC, SHARES, axis=0))
    columns = dataset.columns
    width = max(12, *(len(column) + 7 for column in columns))
    head = [f"{column} {round(100 * share)} %" for column in columns for share in SHARES]
    lines = [f"{name}: the steps behind its end", "step " + " ".join(text.rjust(width) for text in head)]
    for step in range(horizon):
        cells = [f"{quantiles[i, step, c]:.6g}".rjust(width) for c in range(len(columns)) for i in range(len(SHARES))]
        lines.append(f"{step + 1:4d} " + " ".join(cells))
    return "\n".join(lines)


def whole_series(dataset: Any, name: str, sequence: int) -> tuple[str, np.ndarray, np.ndarray]:
    """(name, values, observed) of a series: its last `sequence` steps over all splits that it was cut into."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for split in ("train", "validation", "test"):
        names = dataset.content["series"][split]
        if names:
            examples = dataset.examples("series", split, sequence)
            for number, one in enumerate(names):
                if not name or one == name:
                    parts.setdefault(one, []).append(examples.series(number))
                    name = name or one
    if not parts:
        known = [one for split in ("validation", "train", "test") for one in dataset.content["series"][split]]
        shown = ", ".join(dict.fromkeys(known[:8])) + (", ..." if len(known) > 8 else "")
        raise UserError(f"--prompt: there is no series {name!r} in {dataset.name}; it names one of {shown}")
    values, observed = (np.concatenate(arrays)[-sequence:] for arrays in zip(*parts[name], strict=True))
    return name, values, observed


def _notes(key_C: np.ndarray) -> str:
    """The notes of one step, such as C4 E4 G4; the numbers of the channels if they are not a piano's keys."""
    sounding = np.flatnonzero(key_C)
    if len(key_C) != PIANO:
        return " ".join(f"{number}:{key_C[number]:g}" for number in sounding) or "-"
    notes = [LOWEST_KEY + int(number) for number in sounding]
    return " ".join(f"{PITCHES[note % 12]}{note // 12 - 1}" for note in notes) or "-"
