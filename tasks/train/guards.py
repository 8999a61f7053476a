"""Guards on the device, so that no step waits for the host to look at its loss."""

from typing import Any

import torch
from torch import Tensor

WINDOW = 128
FEWEST = 32
"""The number of steps before the spike guard uses its mean and deviation."""


class Diverged(Exception):
    """A loss or gradient is not finite. This is a result of the training, not a fault. One line."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class FiniteGuard:
    """Stops all updates at the first gradient that is not finite, until the host looks and stops the run.

    The weights stay those of the bad step, so that the step can be run again to find the bad micro-batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.poison = torch.zeros((), device=device)
        self.skip = torch.zeros((), device=device)

    def __call__(self, norm: Tensor) -> Tensor:
        """1.0 if the update must not happen, else 0.0."""
        # 0 x finite is 0; 0 x inf and 0 x nan are nan, and nan stays.
        self.poison += norm * 0
        return torch.ne(self.poison, 0, out=self.skip)


class SpikeGuard:
    """Skips a step if its loss or gradient norm is far above the last WINDOW ones (as OLMo's SkipStepOptimizer)."""

    def __init__(self, threshold: float, device: torch.device) -> None:
        self.threshold = threshold
        self.window = torch.zeros(2, WINDOW, device=device)
        self.seen = 0
        self.skipped = torch.zeros((), device=device)

    def __call__(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 if the step is to be skipped, else 0.0. All ranks agree, because their loss and norm are the same."""
        now = torch.stack([loss, norm])
        known = self.window[:, : min(self.seen, WINDOW)]
        skip = torch.zeros_like(self.skipped)
        if self.seen >= FEWEST:
            deviation, mean = torch.std_mean(known, dim=1)
            skip = (now > mean + self.threshold * deviation).any().float()
        # Spikes enter the window too, because a level that stays high is no spike.
        self.window[:, self.seen % WINDOW] = now
        self.seen += 1
        self.skipped += skip
        return skip

    def state(self) -> dict[str, Any]:
        return {"window": self.window.tolist(), "seen": self.seen, "skipped": self.skipped.item()}

    def restore(self, state: dict[str, Any]) -> None:
        self.window.copy_(torch.tensor(state["window"]))
        self.seen = state["seen"]
        self.skipped.fill_(state["skipped"])
