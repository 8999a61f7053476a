"""Models and adapters with contents."""

import torch
from adapter_cases import CASES
from torch import Tensor, nn

from reducible.models.finetune.lora import (
    adapter_parameters,
)


def drawn(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    build, batch_of = CASES[name]
    return build(), batch_of()


def stir(model: nn.Module, seed: int = 3, size: float = 0.3) -> None:
    """Makes the adapter in use change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(adapter_parameters(model)):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
