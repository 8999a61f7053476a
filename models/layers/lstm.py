"""nn.LSTM under autocast on every CPU: in fp32 where oneDNN has no kernel in half precision."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from reducible.models.layers.device_kind import rehearsing

States = tuple[Tensor, Tensor]
"""Hidden and cell states."""


class LSTM(nn.LSTM):
    """nn.LSTM. Under autocast oneDNN refuses it in bf16 on a CPU without AVX-512 and in fp16 without AVX-512 FP16."""

    weight_ih_l0: Tensor

    def forward(self, input: Tensor, hx: States | None = None) -> tuple[Tensor, States]:  # type: ignore[override]
        return in_precision_of_cpu(super().forward, input, hx, self.weight_ih_l0.dtype)


def in_precision_of_cpu(
    kernel: Callable[[Any, Any], tuple[Tensor, States]], x: Tensor, states: States | None, weights: torch.dtype
) -> tuple[Tensor, States]:
    """kernel(x, states), a fused LSTM whose weights are of that type. Its results are of autocast's type in any case.

    Without instructions for half precision fp32 is many times faster too. A rehearsal computes nothing, and is the same
    on every machine.
    """
    half = torch.get_autocast_dtype("cpu")
    fused = isinstance(x, Tensor) and x.is_cpu  # a packed sequence runs step by step
    if not torch.is_autocast_enabled("cpu") or not fused or rehearsing() or has_kernel(half):
        return kernel(x, states)
    with torch.autocast("cpu", enabled=False):
        given = None if states is None else (states[0].to(weights), states[1].to(weights))
        outputs, (hidden, cell) = kernel(x.to(weights), given)
    return outputs.to(half), (hidden.to(half), cell.to(half))


@cache
def has_kernel(half: torch.dtype) -> bool:
    """Whether oneDNN has an LSTM in this type on this CPU. No flag of torch says so: it is tried, once."""
    # Outside all modes: a counter of FLOPs would see the operator, a rehearsal's fake one always runs.
    with _disable_current_modes(), torch.no_grad(), torch.autocast("cpu", half):
        x_TBX, state = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
        weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4)]
        try:
            torch.lstm(x_TBX, (state, state), weights, True, 1, 0.0, False, False, False)
        except RuntimeError as error:
            if "primitive" not in str(error):
                raise
            return False
    return True
