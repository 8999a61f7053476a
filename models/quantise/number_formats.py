"""Number formats by their sign, exponent and fraction bits: what a bit pattern means, and what a cast loses.

A floating-point number is (-1)^s 2^(e - bias) (1 + f / 2^F): s the sign bit, e the exponent bits, f the F fraction
bits. With e = 0 it is (-1)^s 2^(1 - bias) f / 2^F instead: subnormal, spaced evenly down to 0 (IEEE 754-2019, 3.4).

bf16 suits deep learning because it has the exponent bits of fp32. It holds every number of fp32 to 3 digits. It does
not overflow unless fp32 does, and it keeps gradients of 1e-10. fp16 has 3 more fraction bits and a shorter range: 6.6e4
overflows to infinity, which destroys a step, and below 6.1e-5 digits are lost until nothing is left at 3e-8. Underflow
is the more common problem, because gradients are small and rarely large. Loss scaling multiplies them by a power of 2,
which loses no digit and moves them into the range (Micikevicius et al. 2018).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Float:
    """A floating-point format. `special` says what the highest exponent means: infinities and NaN ("ieee"), or numbers
    except that all ones are NaN ("nan")."""

    name: str
    exponent: int
    """Bits."""
    fraction: int
    """Bits."""
    dtype: torch.dtype | None
    """The type in torch; None if there is none."""
    special: str = "ieee"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        top = 2**self.exponent - (2 if self.special == "ieee" else 1)
        ones = 2**self.fraction - (1 if self.special == "ieee" else 2)
        return self._number(top, ones)

    @property
    def smallest_normal(self) -> float:
        """The smallest number with all digits."""
        return math.ldexp(1.0, 1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest number above 0, which has one digit. Half of it and less rounds to 0."""
        return math.ldexp(1.0, 1 - self.bias - self.fraction)

    @property
    def epsilon(self) -> float:
        """The spacing at 1."""
        return math.ldexp(1.0, -self.fraction)

    def spacing(self, x: float) -> float:
        """The distance from |x| to the next number above it. It doubles with every octave."""
        octave = math.frexp(abs(x))[1] - 1 if x else 1 - self.bias
        return math.ldexp(1.0, max(octave, 1 - self.bias) - self.fraction)

    def value(self, pattern: int) -> float:
        """The number that a bit pattern stands for: sign first, then exponent, then fraction.

        Raises ValueError for a pattern of more bits than the format has.
        """
        if not 0 <= pattern < 2**self.bits:
            raise ValueError(f"{pattern:#x} is not a pattern of {self.bits} bits; {self.name} has {self.bits}")
        fraction = pattern & (2**self.fraction - 1)
        exponent = pattern >> self.fraction & (2**self.exponent - 1)
        sign = -1.0 if pattern >> (self.bits - 1) else 1.0
        if exponent == 2**self.exponent - 1:
            if self.special == "ieee":
                return math.nan if fraction else sign * math.inf
            if fraction == 2**self.fraction - 1:
                return math.nan
        return sign * self._number(exponent, fraction)

    def rounded(self, x: float) -> float:
        """The nearest number, ties to the even fraction. Beyond the largest: infinity, or the largest without one."""
        if math.isnan(x) or x == 0:
            return x
        if math.isinf(x):
            return x if self.special == "ieee" else math.copysign(self.largest, x)
        step = Fraction(self.spacing(x))
        near = float(round(Fraction(x) / step) * step)  # Python rounds halves to even, as IEEE does
        if abs(near) > self.largest:
            return math.copysign(math.inf if self.special == "ieee" else self.largest, x)
        return math.copysign(near, x)

    def _number(self, exponent: int, fraction: int) -> float:
        if exponent == 0:
            return math.ldexp(fraction, 1 - self.bias - self.fraction)
        return math.ldexp(2**self.fraction + fraction, exponent - self.bias - self.fraction)


@dataclass(frozen=True)
class Integer:
    """A two's complement format: evenly spaced numbers, which therefore need a separate scale."""

    name: str
    bits: int
    dtype: torch.dtype

    @property
    def largest(self) -> float:
        return 2.0 ** (self.bits - 1) - 1

    def spacing(self, x: float) -> float:
        return 1.0

    def value(self, pattern: int) -> float:
        """The number that a bit pattern stands for. Raises ValueError for a pattern of more bits."""
        if not 0 <= pattern < 2**self.bits:
            raise ValueError(f"{pattern:#x} is not a pattern of {self.bits} bits; {self.name} has {self.bits}")
        return float(pattern - (pattern >> (self.bits - 1) << self.bits))


FP32 = Float("fp32", 8, 23, torch.float32)
TF32 = Float("tf32", 8, 10, None)
"""The part of fp32 numbers that tensor cores read. They are stored in 32 bits."""
BF16 = Float("bf16", 8, 7, torch.bfloat16)
FP16 = Float("fp16", 5, 10, torch.float16)
FP8_E4M3 = Float("fp8 e4m3", 4, 3, torch.float8_e4m3fn, special="nan")
"""For weights and activations: no infinities, so that 448 fits (Micikevicius et al. 2022)."""
FP8_E5M2 = Float("fp8 e5m2", 5, 2, torch.float8_e5m2)
"""For gradients: the range of fp16."""
INT8 = Integer("int8", 8, torch.int8)
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type that training computes in, by the precision of a recipe."""
FORMATS: tuple[Float | Integer, ...] = (FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2, INT8)


class Lost(NamedTuple):
    """Shares of the non-zero numbers of a tensor that a cast damages."""

    underflow: float
    """The share that becomes 0."""
    digits: float
    """The share that becomes subnormal and loses some of its digits."""
    overflow: float
    """The share that becomes infinite or, without infinities, the largest number."""


def lost(x: Tensor, form: Float, scale: float = 1.0) -> Lost:
    """What a cast of x times `scale` would lose. For gradients it shows whether they need bf16 or loss scaling."""
    size = (x.detach().double().abs() * scale).flatten()
    size = size[size > 0]
    if not len(size):
        return Lost(0.0, 0.0, 0.0)
    gone = size <= form.smallest / 2
    # From half a spacing above the largest on, rounding to nearest goes beyond it.
    beyond = size >= form.largest + form.spacing(form.largest) / 2
    few = (size < form.smallest_normal - form.smallest / 2) & ~gone
    return Lost(*(float(part.double().mean()) for part in (gone, few, beyond)))
