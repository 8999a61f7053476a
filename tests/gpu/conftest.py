"""Every test here needs a CUDA device: `pytest -m gpu`."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Read when cuBLAS is first used: deterministic trainings ask for it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    """The device. fp32 is fp32 there: cuDNN's recurrences take TF32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    gc.collect()


@pytest.fixture
def drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance comes from the CPU's generator on any device: a GPU's own draws other numbers from the same seed."""
    for name in ("randn", "rand"):
        draw = getattr(torch, name)

        def moved(*size: Any, device: Any = None, draw: Any = draw, **keys: Any) -> torch.Tensor:
            return draw(*size, device="cpu" if device is not None else None, **keys).to(device)

        monkeypatch.setattr(torch, name, moved)

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True) -> torch.Tensor:
        if not training or not p:
            return x
        return x * (torch.rand(x.shape, device=x.device) >= p).to(x.dtype) / (1 - p)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
