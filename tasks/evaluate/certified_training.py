"""The certificate of a training on series whose linear-Gaussian model is known: its distance from the exact loss."""

from typing import Any

import numpy as np

from reducible.models.kalman.certificate import FORMS, Certificate, causal_gaps, certificate
from reducible.models.kalman.filter import LinearGaussian, log_likelihood


def true_model(dataset: Any) -> LinearGaussian | None:
    """The model that the series were drawn from, in the units that models see; None if it is not known."""
    source = dataset.generated
    if source is None:
        return None
    A, B, C, D = (np.array(getattr(source, name)) for name in "ABCD")
    mean, deviation = np.array(dataset.content["mean"]), np.array(dataset.content["deviation"])
    return LinearGaussian.long_running(
        A, B, C / deviation[:, None], D / deviation[:, None], emission_offset=-mean / deviation
    )


def certified(
    model: Any, truth: LinearGaussian, batches: list[dict[str, np.ndarray]], loss: float, error: float | None
) -> dict[str, Any]:
    """The certificate's numbers, in nats per step of these windows. `loss` is the trained model's loss on them.

    `exact_loss` is -log p of exactly these values by the true model. `gap` is `loss` minus it. A floor is the gap of
    the best q of a form with the true p; like the encoders' q, it is independent in the coordinates of a step. The
    floor of a causal q depends on the values and is that of these (its average over all series is
    `floor_causal_expected`); the other floors do not depend on them. If the trained model's p is the true one, its gap
    can be below the floor of its own form only by chance, and `above_floor` says how far it is above. `error` is the
    standard error of `loss` as an average over draws of latents.

    Raises:
        ValueError: latents of the true model have no density.
    """
    steps, windows, squares = 0, 0, 0.0
    sums = dict.fromkeys(("exact", "expected", *FORMS, "causal_expected"), 0.0)
    at: dict[int, Certificate] = {}
    for batch in batches:
        lengths_B = batch["steps"].sum(1)
        for length in sorted({int(length) for length in lengths_B}):
            values_NTC = batch["values"][lengths_B == length, :length].astype(np.float64)
            found = at.setdefault(length, certificate(truth, length, diagonal=True))
            nats_N = -log_likelihood(truth, values_NTC)
            N = len(nats_N)
            steps, windows = steps + N * length, windows + N
            squares += float(((nats_N - found.negative_log_likelihood) ** 2).sum())
            sums["exact"] += float(nats_N.sum())
            sums["causal"] += float(causal_gaps(truth, values_NTC, diagonal=True).sum())
            sums["expected"] += N * found.negative_log_likelihood
            sums["structured"] += N * found.structured
            sums["bidirectional"] += N * found.bidirectional
            sums["causal_expected"] += N * found.causal
    numbers: dict[str, Any] = {
        "exact_loss": sums["exact"] / steps,
        "exact_loss_expected": sums["expected"] / steps,
        "exact_loss_standard_error": squares**0.5 / steps,
        "gap": loss - sums["exact"] / steps,
        "gap_standard_error": error,
    }
    numbers |= {f"floor_{form}": sums[form] / steps for form in (*FORMS, "causal_expected")}
    if is_true(model, truth):
        numbers["above_floor"] = numbers["gap"] - numbers[f"floor_{model.form}"]
    return numbers


def is_true(model: Any, truth: LinearGaussian) -> bool:
    """Whether the p that the recipe fixes (`model.A` to `model.D`) is the one that the series were drawn from."""
    fixed = model.fixed()
    if fixed is None or model.form not in FORMS or not np.allclose(truth.emission_offset, 0):
        return False
    its, true = (
        (one.transition, one.transition_covariance, one.emission, one.emission_covariance) for one in (fixed, truth)
    )
    return all(one.shape == other.shape and np.allclose(one, other) for one, other in zip(its, true, strict=True))


def certificate_note(numbers: dict[str, Any], model: Any) -> str:
    """The exact loss and the floors as a table, with the trained model below the floor of its form."""
    known = "above_floor" in numbers
    own = model.form
    error = 1.96 * numbers["exact_loss_standard_error"]
    lines = [
        "### Certificate",
        "The series were drawn from a linear-Gaussian model, so that the best loss is known.",
        "| nats per step | value | above exact |",
        "|---|---:|---:|",
        f"| exact -log p(x) by the true model, on these values | {numbers['exact_loss']:.4f} | 0 |",
        f"| the same, expected | {numbers['exact_loss_expected']:.4f} ± {error:.4f} | |",
    ]
    for form in FORMS:
        name = f"floor of a {form} q{' (this one)' if form == own else ''}"
        floor = numbers[f"floor_{form}"]
        lines.append(f"| {name} | {numbers['exact_loss'] + floor:.4f} | {floor:.4f} |")
    spread = "" if numbers["gap_standard_error"] is None else f" ± {1.96 * numbers['gap_standard_error']:.4f}"
    own_loss = numbers["exact_loss"] + numbers["gap"]
    lines.append(f"| **this model** | **{own_loss:.4f}**{spread} | **{numbers['gap']:.4f}**{spread} |")
    text = "\n".join([lines[0], "", lines[1], "", *lines[2:]])
    if known:
        return text + (
            f"\n\nIts p is the true one. Its loss is {numbers['above_floor']:.4f}{spread} nats per step above the best "
            f"that a {own} q can reach on these values."
        )
    if model.exact:
        return text + "\n\nIts likelihood is exact, so the gap comes from its parameters alone; no floor of q applies."
    if model.fixed() is not None:
        return text + (
            "\n\n`model.A` to `model.D` are not those that the series were drawn from, in the units that the model "
            "sees (`data.standardise` changes them), so no floor applies."
        )
    return text + (
        "\n\nIts p was learnt too. The floors are those of the true p. A learnt p can go below the floor of its form, "
        "if its own posterior is easier to approximate. On average it cannot go below exact."
    )
