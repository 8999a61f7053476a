"""Loss scaling for fp16: gradients are computed times a scale that lifts them above fp16's underflow.

fp16 has nothing below 3e-8 (models/quantise/number_formats.py), and gradients do lie there. A loss times S has
gradients times S; the optimizer divides by S again, in fp32. S is a power of 2, so neither loses a digit. A scale that
is too large overflows: then the step is skipped and S halved; after GROWS_AFTER steps that did not, S is doubled. So it
stays just below the largest that fits, wherever training takes that (Micikevicius et al. 2018, section 3.2).

All of it is on the device, so no step waits for the host. It is part of the training's state and of checkpoints.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST = 2.0**16
SMALLEST = 1.0
"""The smallest scale. If a gradient is not finite here, the scale is not the cause: the run has diverged."""
LARGEST = 2.0**60
"""The largest scale. If all gradients are zero, only this stops the doubling before the scale is infinite."""
GROWS_AFTER = 2000
"""The number of steps without overflow before a doubling. Every doubling too many costs a step."""


class LossScale:
    """The factor of a step's loss, and afterwards whether the step's gradient can be used."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), FIRST, device=device)
        self.good = torch.zeros((), device=device)
        """Steps since the scale changed or the gradient overflowed."""
        self.norm = torch.zeros((), device=device)
        """The gradient norm of the last step that did not overflow; 0 before the first."""
        self.overflows = torch.zeros((), device=device)

    def __call__(self, scaled_norm: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the gradient without the scale, and 1.0 if the step is to be skipped. Sets the next scale.

        `scaled_norm` is the norm over all ranks, so all ranks decide alike. An overflow has no norm: the norm of the
        step before takes its place, so that the guards do not react. At the smallest scale they get the infinite or
        NaN norm itself.
        """
        norm = scaled_norm / self.scale
        bad = norm.isfinite().logical_not()
        overflow = bad & (self.scale > SMALLEST)
        self.norm = torch.where(overflow, self.norm, norm)
        good = (self.good + 1) * bad.logical_not()
        grows = (good >= GROWS_AFTER).float()
        self.good = good * (1 - grows)
        skip = overflow.float()
        self.scale = (self.scale * (1 + grows - skip / 2)).clamp(max=LARGEST)
        self.overflows = self.overflows + skip
        return self.norm, skip

    def state(self) -> dict[str, float]:
        return {name: getattr(self, name).item() for name in ("scale", "good", "norm", "overflows")}

    def restore(self, state: Mapping[str, float]) -> None:
        for name, value in state.items():
            getattr(self, name).fill_(value)
