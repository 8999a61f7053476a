"""The certificate of a training on series whose linear-Gaussian model is known: how near it came, and could come."""

from typing import Any

import numpy as np

from models.certificate import FORMS, certificate
from models.kalman import LinearGaussian, log_likelihood, stationary


def true_model(dataset: Any) -> LinearGaussian | None:
    """The model that the series were drawn from, in the units that models see; None where nobody knows it."""
    source = dataset.generated
    if source is None:
        return None
    A, B, C, D = (np.array(getattr(source, name), dtype=np.float64) for name in "ABCD")
    mean, deviation = np.array(dataset.content["mean"]), np.array(dataset.content["deviation"])
    return LinearGaussian(
        A,
        B,
        C / deviation[:, None],
        D / deviation[:, None],
        np.zeros(len(A)),
        stationary(A, B),
        emission_offset=-mean / deviation,
    )


def certified(model: Any, truth: LinearGaussian, batches: list[dict[str, np.ndarray]], loss: float) -> dict[str, Any]:
    """All in nats per step of these windows, whose loss under the trained model is `loss`.

    `exact_loss` is -log p of these very values by the true model and `gap` what the trained model loses to it; the
    floors are expectations over what the true model draws, for q of each form with the true p. Where the trained
    model's p is the true one, its gap cannot stay below the floor of its own form, and `above_floor` says by how much
    it lies above.

    Raises:
        ValueError: latents of the true model have no density.
    """
    nats, steps, squares = 0.0, 0, 0.0
    expected = dict.fromkeys(("exact", *FORMS), 0.0)
    at: dict[int, Any] = {}
    for batch in batches:
        for length in np.unique(lengths_B := batch["steps"].sum(1)):
            rows = lengths_B == length
            values, observed = (batch[name][rows, :length] for name in ("values", "observed"))
            nats_B = -log_likelihood(truth, values, observed)
            if int(length) not in at:
                at[int(length)] = certificate(truth, int(length))
            found = at[int(length)]
            nats += float(nats_B.sum())
            steps += int(length) * len(nats_B)
            squares += float(((nats_B - found.negative_log_likelihood) ** 2).sum())
            expected["exact"] += found.negative_log_likelihood * len(nats_B)
            for form in FORMS:
                expected[form] += getattr(found, form) * len(nats_B)
    numbers: dict[str, Any] = {
        "exact_loss": nats / steps,
        "exact_loss_expected": expected["exact"] / steps,
        "exact_loss_standard_error": squares**0.5 / steps,
        "gap": loss - nats / steps,
    }
    numbers |= {f"floor_{form}": expected[form] / steps for form in FORMS}
    if getattr(model.config, "A", None) is not None:
        numbers["above_floor"] = numbers["gap"] - numbers[f"floor_{model.config.posterior}"]
    return numbers


def certificate_note(numbers: dict[str, Any], model: Any) -> str:
    """The ladder as a table, the trained model on the rung of its form."""
    known = "above_floor" in numbers
    own = getattr(model.config, "posterior", None)
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
    lines.append(f"| **this model** | **{numbers['exact_loss'] + numbers['gap']:.4f}** | **{numbers['gap']:.4f}** |")
    text = "\n".join([lines[0], "", lines[1], "", *lines[2:]])
    if known:
        return text + (
            f"\n\nIts p is the true one: it lies {numbers['above_floor']:.4f} nats per step above the best that any "
            f"{own} q can reach (the floor is an expectation, the gap one of these values)."
        )
    if getattr(model, "exact", False):
        return text + "\n\nIts likelihood is exact, so the gap is what its parameters lack; no floor of q concerns it."
    return text + (
        "\n\nIts p was learnt too. The floors are those of the true p: a learnt one can come below the floor of its "
        "form, by moving to where its own posterior is easier to approximate; below exact it cannot come, on average."
    )
