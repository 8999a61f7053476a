"""Quantisation of weights to 4 or 8 bits: the mathematics of bitsandbytes' kernels in plain torch, to read and test by.

A block of weights w is stored as one constant c = max |w| and a code for every weight: the number of the nearest of a
few levels between -1 and 1.

    code = argmin_i |w / c - level_i|        w' = c level_code

**Blocks.** With one constant for a whole tensor, an outlier affects all weights. If a single weight among normal ones
is 100 standard deviations large, the levels of int8 are 100 / 127 apart, and the mean error of all weights is a
quarter of that, 0.197. With a constant for every 64 weights only the 63 other weights of its block are affected, and
the mean error is 0.0050.

**Levels.** int8 has evenly spaced levels, which are best for uniform weights. nf4 (QLoRA, Dettmers et al. 2023) has
quantiles of the normal distribution, so that normal weights use the 16 codes more evenly: a code carries 3.88 of its 4
bits, and 3.65 with even levels. fp4 has the levels of a 4-bit float. `dynamic` (Dettmers 2015) is for numbers of very
different sizes: its levels are evenly spaced within every power of ten.

**Double quantisation.** A constant of 32 bits for 64 weights adds half a bit to each. The constants are similar, so
their mean is subtracted and the rest is quantised again, to 8-bit dynamic codes in blocks of 256. Then they add 0.127
bits.
"""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

BLOCK = 64
"""The number of weights that share a constant, as in the QLoRA paper."""
CONSTANTS_BLOCK = 256
"""First-level constants that share a second-level one."""


def normal_levels() -> Tensor:
    """The 16 levels of nf4: quantiles of N(0, 1), 7 below zero, zero itself, 8 above it, the largest scaled to 1.

    Equation 4 of the paper, as bitsandbytes implements it. The outermost probability cannot be 1, whose quantile is
    infinite. It is halfway between 1 - 1/30 and 1 - 1/32, half a step from the end of 15 and of 16 steps. Probabilities
    and levels are rounded to fp32 where bitsandbytes rounds them, so that they agree to the bit.
    """
    outermost, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(p) for p in torch.linspace(outermost, 0.5, 9).tolist()[:-1]]
    below = [-quantile(p) for p in torch.linspace(outermost, 0.5, 8).tolist()[:-1]]
    levels = torch.tensor(below + [0.0] + above[::-1])
    return levels / levels.max()


def float_levels() -> Tensor:
    """The 16 levels of fp4 by bit pattern: a sign bit, two exponent bits, one fraction bit, the largest scaled to 1.

    This differs from E2M1, whose numbers are 0.5, 1, 1.5, 2, 3, 4, 6: bitsandbytes has another order of the exponents,
    and its smallest number is 1/192 of the largest, not 1/12.
    """
    positive = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
    return torch.cat([positive, -positive])


def linear_levels(bits: int) -> Tensor:
    """2^bits - 1 evenly spaced levels, k / 127 for 8 bits. The remaining code stands for zero as well."""
    levels = torch.linspace(-1, 1, 2**bits - 1)
    half = len(levels) // 2
    return torch.cat([levels[:half], torch.zeros(1), levels[half:]])


def dynamic_levels() -> Tensor:
    """256 levels: in the i-th power of ten below 1 there are 2^(6 - i), i = 0..6, of each sign; and 0 and 1.

    They are the middles of equal intervals: many digits for large numbers, few for small ones, down to 5.5e-7.
    """
    levels = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        levels += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(levels))


NF4, FP4, INT4, INT8, DYNAMIC = normal_levels(), float_levels(), linear_levels(4), linear_levels(8), dynamic_levels()


@dataclass(frozen=True)
class Quantised:
    """A tensor as codes into `levels` and constants, one for each block of its elements in memory order."""

    codes: Tensor
    """uint8, one for each element, flat."""
    constants: Tensor
    """fp32, (blocks,)."""
    levels: Tensor
    block: int
    shape: torch.Size


def quantise(x: Tensor, levels: Tensor, block: int | None = BLOCK) -> Quantised:
    """Codes and constants of x. The last block may be shorter; None: the whole tensor is one block.

    Raises ValueError if x has a number that is not finite, which would be the constant of its whole block.
    """
    if not x.isfinite().all():
        raise ValueError("a tensor with infinities or NaN cannot be quantised")
    block = block or max(1, x.numel())
    rows = torch.nn.functional.pad(x.detach().float().flatten(), (0, -x.numel() % block)).view(-1, block)
    constants = rows.abs().amax(dim=1)
    # The constant of a block of zeros is 0, and 0 / 1e-38 is 0, as it should be.
    scaled = (rows * (1 / constants.clamp(min=1e-38))[:, None]).clamp(-1, 1).flatten()[: x.numel()]
    # The nearest level changes at the middle between two levels, so a search among the sorted middles finds it.
    levels = levels.to(x.device)
    order = levels.argsort(stable=True)
    middles = (levels[order[:-1]] + levels[order[1:]]) / 2
    codes = order[torch.bucketize(scaled, middles)].to(torch.uint8)
    return Quantised(codes, constants, levels, block, x.shape)


def dequantise(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The levels times the constants, in fp32, then rounded to dtype."""
    values = quantised.levels[quantised.codes.int()]
    constants = quantised.constants.repeat_interleave(quantised.block)[: len(values)]
    return (values * constants).view(quantised.shape).to(dtype)


@dataclass(frozen=True)
class DoubleQuantised:
    """Constants of blocks, quantised themselves."""

    mean: Tensor
    """fp32 scalar. The constants are positive; subtracting their mean makes use of the sign bit of their codes."""
    rest: Quantised


def quantise_constants(constants: Tensor) -> DoubleQuantised:
    """Double quantisation of (blocks,) constants."""
    mean = constants.mean()
    return DoubleQuantised(mean, quantise(constants - mean, DYNAMIC, CONSTANTS_BLOCK))


def dequantise_constants(double: DoubleQuantised) -> Tensor:
    return dequantise(double.rest) + double.mean


def bits_per_parameter(bits: int, block: int = BLOCK, double: bool = False) -> float:
    """4 + 32 / 64 = 4.5; with double quantisation 4 + 8 / 64 + 32 / (64 x 256) = 4.127."""
    return bits + (8 / block + 32 / (block * CONSTANTS_BLOCK) if double else 32 / block)


def pack(codes: Tensor) -> Tensor:
    """Two 4-bit codes in a byte, the first in the high half: (n,) to (ceil(n / 2),), uint8."""
    if len(codes) % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[::2] << 4 | codes[1::2]


def unpack(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes."""
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]
