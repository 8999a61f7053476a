"""The certificate of a training on series whose linear-Gaussian model is known: how near it came, and could come."""

from typing import Any

import numpy as np

from reducible.models.kalman.certificate import FORMS, Certificate, causal_gaps, certificate
from reducible.models.kalman.filter import LinearGaussian, log_likelihood


def true_model(dataset: Any) -> LinearGaussian | None:
    """The model that the series were drawn from, in the units that models see; None where nobody knows it."""
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
    """All in nats per step of these windows, whose loss under the trained model is `loss`.

    `exact_loss` is -log p of these very values by the true model, and `gap` what the trained model loses to it. The
    floors are the gaps of the best q of each form with the true p, independent in the coordinates of a step as the
    encoders are; that of causal q on these values (its average over all series is `floor_causal_expected`; those of
    the others depend on no values). Where the trained model's p is the true one, its gap cannot stay below the floor
    of its own form but by chance, and `above_floor` says by how much it lies above. `error` is the standard error of
    `loss` as an average over draws of latents.

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
    """Whether the p that the recipe fixed (`model.A` to `model.D`) is the one that the series were drawn from."""
    fixed = model.fixed()
    if fixed is None or model.form not in FORMS or not np.allclose(truth.emission_offset, 0):
        return False
    its, true = (
        (one.transition, one.transition_covariance, one.emission, one.emission_covariance) for one in (fixed, truth)
    )
    return all(one.shape == other.shape and np.allclose(one, other) for one, other in zip(its, true, strict=True))


def certificate_note(numbers: dict[str, Any], model: Any) -> str:
    """The ladder as a table, the trained model on the rung of its form."""
    known = "above_floor" in numbers
    own = model.form
    error = 1.96 * numbers["exact_loss_standard_error"]
    lines = [
        "### Certificate",
        "The series were drawn from a linear-Gaussian model, so that the best loss is known.",
        "| nats per step | value | above exact |",
        "|---|---:|---:|",
        f"| exact -log p(x) by the true model, of these values | {numbers['exact_loss']:.4f} | 0 |",
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
            f"\n\nIts p is the true one: it lies {numbers['above_floor']:.4f}{spread} nats per step above the best "
            f"that a {own} q can do on these values."
        )
    if model.exact:
        return text + "\n\nIts likelihood is exact, so the gap is what its parameters lack; no floor of q concerns it."
    if model.fixed() is not None:
        return text + (
            "\n\n`model.A` to `model.D` are not those that the series were drawn from, in the units that the model "
            "sees (`data.standardise` changes them), so that no floor binds it."
        )
    return text + (
        "\n\nIts p was learnt too. The floors are those of the true p: a learnt one can come below the floor of its "
        "form, by moving to where its own posterior is easier to approximate; below exact it cannot come, on average."
    )
