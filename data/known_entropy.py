"""What is known of the best possible loss on generated data."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class KnownEntropy:
    """Nats per target unit that no model can go below."""

    rate: float
    """Given the whole past, in the long run. Negative values are possible for densities (series)."""
    error: float = 0.0
    """The values are exact to within this: 0, or three standard errors if they are computed by simulation."""
    best_loss: float | None = None
    """Of a model that reads windows of the recipe's length, on average over all data; None if it has no closed form."""

    @property
    def truth(self) -> float:
        """The value to compare a fitted E with."""
        return self.rate if self.best_loss is None else self.best_loss


def entropy(chances: np.ndarray) -> float:
    """-sum p log p in nats."""
    positive = chances[chances > 0]
    return float(-(positive * np.log(positive)).sum())
