"""Rotary positions: queries and keys are turned by an angle that grows with their position (Su et al. 2021)."""

import torch
from torch import Tensor


class Rotary:
    """exp(i position frequency), made when first needed; no module and no buffer, so that nothing casts it to bf16."""

    def __init__(self, head_size: int, theta: float) -> None:
        self.head_size = head_size
        self.theta = theta
        self.kept_TC = torch.empty(0, 0, dtype=torch.complex64)

    def table(self, length: int, device: torch.device) -> Tensor:
        """Complex (length, head_size / 2)."""
        if torch.compiler.is_compiling():
            return self.make(length, device)
        if self.kept_TC.shape[0] < length or self.kept_TC.device != device:
            with torch.inference_mode(False), torch.no_grad():
                self.kept_TC = self.make(length, device)
        return self.kept_TC[:length]

    def make(self, length: int, device: torch.device) -> Tensor:
        exponent_C = torch.arange(0, self.head_size, 2, device=device, dtype=torch.float64) / self.head_size
        position_T = torch.arange(length, device=device, dtype=torch.float64)
        angle_TC = torch.outer(position_T, self.theta**-exponent_C)
        return torch.polar(torch.ones_like(angle_TC), angle_TC).to(torch.complex64)


def rotate(x_BTHK: Tensor, table_TC: Tensor) -> Tensor:
    """Turn neighbouring pairs of every head by the angle of their position (Su et al. 2021), in fp32 at least.

    One complex product is the fastest form on a CPU; compilers know only real ones.
    """
    pairs = x_BTHK.to(torch.promote_types(x_BTHK.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        real, imaginary = pairs.unbind(-1)
        cos, sin = table_TC.real[:, None], table_TC.imag[:, None]
        turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * table_TC[:, None])
    return turned.flatten(-2).to(x_BTHK.dtype)
