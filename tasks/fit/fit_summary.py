"""A fit or a prediction in a few lines of text, for terminals and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from reducible.tasks.errors import UserError
from reducible.tasks.fit.back_test import by_ratio
from reducible.tasks.fit.best_loss import best_loss
from reducible.tasks.fit.overtaking import Comparison
from reducible.tasks.fit.predict import Gain, ModelPrediction, predict
from reducible.tasks.fit.result import Estimate, Fit, Law, Prediction
from reducible.tasks.words import plural, upper_first

MOST_EXCLUSIONS = 12  # that are named line by line


def summary(fit: Fit) -> str:
    """The law or the verdict, the optimum at ten times the largest run, health, back-test, exclusions."""
    lines = [f"{len(fit.used)} runs, {len(fit.excluded)} excluded; C from {_span(fit)} FLOPs"]
    lines += _ranking(fit)
    law = fit.law
    if law is not None:
        lines.append(f"{law.form.formula}   (95 % intervals)")
        lines.append(f"  E     = {_E(fit, law)}")
        lines += _parameters(law)
    lines.append(f"{fit.health.verdict}.")
    lines += [f"{upper_first(text)}." for text in (*fit.health.findings, fit.health.advice) if text]
    best = best_loss(fit)
    if best is not None:
        source = "law" if best.source == "law" else "isoFLOP minima"
        lines.append(
            f"reducible loss of the best runs ~ C^-gamma, gamma = {best.exponent(fit.largest_compute)}   ({source})"
        )
    for share in (fit.allocation, fit.isoflop):
        if share is not None:
            source = "law" if share.approach == "law" else "isoFLOP minima"
            lines.append(f"N* ~ C^{share.a}, D* ~ C^{share.b}   ({source})")
    refused = [point for point in fit.frontier.points if point.refused]
    lines += [f"  no minimum at {point.C:.3g} FLOPs: {point.refused}" for point in refused]
    if law is not None:
        lines += _next_budget(fit)
        lines.append(
            f"health: {100 * fit.health.share_at_best:.0f} % of {fit.health.starts} starts at the best optimum, "
            f"{fit.health.basins} basin{'s' if fit.health.basins != 1 else ''}, gradient "
            f"{fit.health.gradient_norm:.0e}, condition {fit.health.condition_number:.0f}, "
            f"residuals {100 * fit.health.residual_deviation:.2f} %"
        )
    lines += _back_test(fit)
    lines += _sensitivity(fit)
    lines += [f"note: {text}" for text in (*fit.health.warnings, *fit.notes)]
    lines += _excluded(fit)
    return "\n".join(lines)


def families_summary(fits: Mapping[str, Fit], comparison: Comparison) -> str:
    """A line for each family, what overtakes what, and the E that they may share."""
    wide = max(map(len, fits))
    formulas = " or ".join(dict.fromkeys(fit.form.formula for fit in fits.values()))
    lines = [f"{formulas} for each family; gamma of its reducible loss   (95 % intervals)"]
    for name, fit in fits.items():
        law, best = fit.law, best_loss(fit)
        text = f"  {name:{wide}}  {len(fit.used)} runs"
        if law is None or best is None:
            lines.append(f"{text}; {fit.health.verdict}")
            continue
        E = f"E = {_E(fit, law)}"
        gamma = best.exponent(fit.largest_compute)
        exponents = "; ".join(f"{exponent} = {law[exponent]}" for exponent in law.form.exponents)
        lines.append(f"{text}; {E}; {exponents}; gamma = {gamma}")
    lines += comparison_lines(comparison)
    for name, fit in fits.items():
        lines += [f"note, {name}: {text}" for text in (*fit.health.warnings, *fit.notes)]
        lines += _excluded(fit, f", {name}")
    return "\n".join(lines)


def comparison_lines(comparison: Comparison) -> list[str]:
    """What overtakes what, what the compute of one counts in the other's, and the E that they may share."""
    said = [one.sentence for one in comparison.overtakings] + [one.sentence for one in comparison.multipliers]
    return [f"{sentence}." for sentence in (*said, comparison.shared_E.sentence)]


def prediction_text(prediction: Prediction) -> str:
    """A prediction in five lines, or in three if the law does not say how to split compute."""
    lines = [f"compute   {prediction.compute.short} FLOPs ({prediction.ratio:.3g} times the largest run)"]
    if prediction.splits:
        lines += [f"N*        {prediction.N.short} parameters", f"D*        {prediction.D.short} units"]
    lines += [
        f"loss      {prediction.loss}",
        f"reducible {prediction.reducible}",
    ]
    return "\n".join(lines + [f"note: {text}" for text in prediction.warnings])


def gain_text(gain: Gain) -> str:
    """What more compute gains, line by line."""
    before, after = gain.before, gain.after
    lines = [
        f"compute   {before.compute.value:.3g} -> {after.compute.value:.3g} FLOPs, {gain.factor:g} times as much "
        f"({after.ratio:.3g} times the largest run)",
        f"loss      {before.loss.value:.4g} -> {after.loss}",
        f"gain      {gain.difference} nats, {_percents(gain.share)} of the reducible loss",
    ]
    if after.splits:
        lines += [
            f"N*        {before.N.value:.3g} -> {after.N.short} parameters",
            f"D*        {before.D.value:.3g} -> {after.D.short} units",
        ]
    return "\n".join(lines + [f"note: {text}" for text in after.warnings])


def model_text(prediction: ModelPrediction) -> str:
    """The loss of one model, and what it pays for not being the best at its compute, line by line."""
    lines = [
        f"model     N = {prediction.N:.4g}, D = {prediction.D:.4g}; {prediction.compute:.3g} FLOPs "
        f"({prediction.ratio:.3g} times the largest run)",
        f"loss      {prediction.loss}",
        f"reducible {prediction.reducible}",
    ]
    best = prediction.best
    if best is not None and prediction.penalty is not None and prediction.waste is not None:
        lines += [
            f"penalty   {prediction.penalty} above the best loss at this compute, {best.loss.value:.4g} with "
            f"N* = {best.N.value:.3g}, D* = {best.D.value:.3g}",
            f"          {prediction.waste.short} times the compute that reaches the same loss",
        ]
    return "\n".join(lines + [f"note: {text}" for text in prediction.warnings])


def models_text(predictions: Sequence[tuple[str, ModelPrediction]], costs: Sequence[str | None] = ()) -> str:
    """A line for each model, and each note once. costs: of each model, if a price is set."""
    priced = any(costs)
    rows = [("model", "N", "D", "FLOPs", "loss", "penalty", *(("cost",) if priced else ()))]
    for index, (name, one) in enumerate(predictions):
        penalty = "unknown" if one.penalty is None else str(one.penalty)
        cost = (costs[index] or "",) if priced else ()
        rows.append((name, f"{one.N:.3g}", f"{one.D:.3g}", f"{one.compute:.3g}", str(one.loss), penalty, *cost))
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    notes = dict.fromkeys(text for _, one in predictions for text in one.warnings)
    return "\n".join([*lines, *(f"note: {text}" for text in notes)])


def _ranking(fit: Fit) -> list[str]:
    """The forms by what they predicted, if one was to be chosen."""
    if fit.ranking is None:
        return []
    ranking = fit.ranking
    lines = [f"{ranking.sentence}."]
    wide = max(len(row.form) for row in ranking.forms)
    for row in ranking.forms:
        if row.reason:
            lines.append(f"  {row.form:{wide}}  not ranked: {row.reason}")
        else:
            lines.append(
                f"  {row.form:{wide}}  back-test error {100 * row.mean:.2f} % (median {100 * row.median:.2f} %, worst "
                f"{100 * row.worst:.2f} %){', not told from the best' if row.equal and not ranking.told else ''}"
            )
    if any(not row.reason for row in ranking.forms):
        lines.append(f"  mean of {ranking.levels} levels, on the {ranking.predictions} predictions that all made")
    return lines


def _E(fit: Fit, law: Law) -> str:
    """E with its interval, if it has one, and its level if that is not the best."""
    if fit.health.identified:
        return str(law.E)
    return f"{law.E if fit.health.bounded else format(law.E.value, '.4g')}, {fit.health.level}"


def _back_test(fit: Fit) -> list[str]:
    """The error to quote, by how far the prediction reached; one line each, and the levels that were left out."""
    found = by_ratio(fit.back_tests)
    lines = []
    if found:
        lines.append("back-test: fits to the cheaper runs, and how far they miss the dearer ones")
        for row in found:
            behind = f"{plural(row.predictions, 'prediction')} of {plural(row.levels, 'fit')}"
            lines.append(
                f"  {row.ratio:>3.0f} times the compute: median error {100 * row.median:.2f} %, worst "
                f"{100 * row.worst:.2f} % ({row.worst_run}; {behind})"
            )
    return lines + [f"  {text}" if found else f"no back-test: {text}" for text in fit.untested]


def _sensitivity(fit: Fit) -> list[str]:
    """How far E, and N* at ten times the compute, move under other choices; report.html has the table."""
    if len(fit.sensitivity) < 2:
        return []
    spans = []
    for name, of in (("E", lambda one: one.E), ("N*", lambda one: one.N)):
        rows = [one for one in fit.sensitivity if math.isfinite(of(one))]
        if rows:
            low, high = min(rows, key=of), max(rows, key=of)
            spans.append(f"{name} from {of(low):.4g} ({low.label}) to {of(high):.4g} ({high.label})")
    return [f"under other choices: {'; '.join(spans)}"] if spans else []


def _excluded(fit: Fit, whose: str = "") -> list[str]:
    """A line for each run that was left out; if they are many, one line and the file that names them."""
    if len(fit.excluded) <= MOST_EXCLUSIONS:
        return [f"excluded {run.name}: {run.reason}" for run in fit.excluded]
    return [f"excluded{whose}: {len(fit.excluded):,} runs; runs.csv beside fit.json names each with its reason"]


def _next_budget(fit: Fit) -> list[str]:
    compute = 10 * fit.largest_compute
    try:
        best = predict(fit, compute=compute)
    except UserError as error:
        return [str(error)]
    split = f"N* = {best.N.short}, D* = {best.D.short}, " if best.splits else ""
    return [f"at {compute:.3g} FLOPs (10 times the largest run): {split}loss {best.loss}"]


def _parameters(law: Law) -> list[str]:
    """A line for each exponent, with the coefficient of the same place."""
    wide = max(map(len, law.form.exponents))
    lines = []
    for exponent, coefficient in zip_longest(law.form.exponents, law.form.coefficients):
        pair = [f"{exponent:{wide}} = {law[exponent]}"] if exponent else []
        pair += [f"{coefficient} = {law[coefficient]}"] if coefficient else []
        lines.append(f"  {'   '.join(pair)}")
    return lines


def _span(fit: Fit) -> str:
    return f"{min(run.C for run in fit.used):.3g} to {fit.largest_compute:.3g}"


def _percents(share: Estimate) -> str:
    interval = "" if math.isnan(share.low) else f" [{100 * share.low:.3g}, {100 * share.high:.3g}]"
    return f"{100 * share.value:.3g}{interval} %"
