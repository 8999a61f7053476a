"""What is known of the best possible loss on generated data, in words, and whether a fit agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reducible.data.known_entropy import KnownEntropy

if TYPE_CHECKING:
    from reducible.tasks.fit.result import Fit


def known_loss(known: KnownEntropy, unit: str) -> str:
    """The best possible loss, and the entropy rate that it comes from."""
    error = f" ± {known.error:.1g}" if known.error else ""
    rate = f"{known.rate:.4f}{error} nats per {unit} given all that comes before"
    if known.best_loss is None:
        return f"at least {rate}"
    return f"at least {known.best_loss:.4f}{error} nats per {unit} as these data are read; {rate}"


def agreement(known: KnownEntropy, fit: Fit) -> str:
    """The true least loss and whether the interval of E contains it: what follows "truth: "."""
    if fit.law is None:
        return "no law was fitted, so there is no E to compare"
    E, truth = fit.law.E, known.truth
    if not fit.health.bounded:
        return f"{truth:.4g}; these runs do not identify E"
    inside = E.low - known.error <= truth <= E.high + known.error
    if inside:
        return f"{truth:.4g}; the interval of E contains it"
    if known.best_loss is None and truth < E.low:
        return f"E lies above {truth:.4g}, the least that any model can reach with the whole past known"
    return f"{truth:.4g}; the interval of E, of what this family can express, does not contain it"
