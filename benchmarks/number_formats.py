"""What weights lose in each number format: bits per parameter and error, for three kinds of weights.

    python benchmarks/number_formats.py

A million weights each: normal, normal with one of 100 deviations, and uniform as nn.LSTM begins. The mean error is
in deviations of the normal weights; the relative one is the norm of all errors over the norm of all weights.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reducible.models.quantise.number_formats import BF16, FP8_E4M3, FP8_E5M2, FP16, Float
from reducible.models.quantise.reference import (
    DYNAMIC,
    FP4,
    INT4,
    INT8,
    NF4,
    bits_per_parameter,
    dequantise,
    dequantise_constants,
    quantise,
    quantise_constants,
)

COUNT = 2**20


def cast(form: Float) -> Callable[[Tensor], Tensor]:
    assert form.dtype is not None
    return lambda x: x.to(form.dtype).float()


def blocks(levels: Tensor, block: int | None = 64) -> Callable[[Tensor], Tensor]:
    return lambda x: dequantise(quantise(x, levels, block))


def doubly(x: Tensor) -> Tensor:
    quantised = quantise(x, NF4)
    return dequantise(replace(quantised, constants=dequantise_constants(quantise_constants(quantised.constants))))


FORMATS: list[tuple[str, float, Callable[[Tensor], Tensor]]] = [
    ("bf16", 16, cast(BF16)),
    ("fp16", 16, cast(FP16)),
    ("fp8 e4m3", 8, cast(FP8_E4M3)),
    ("fp8 e5m2", 8, cast(FP8_E5M2)),
    ("int8, one constant", 8, blocks(INT8, None)),
    ("int8, blocks of 64", bits_per_parameter(8), blocks(INT8)),
    ("dynamic 8-bit, blocks of 64", bits_per_parameter(8), blocks(DYNAMIC)),
    ("nf4", bits_per_parameter(4), blocks(NF4)),
    ("nf4, double quantisation", bits_per_parameter(4, double=True), doubly),
    ("fp4", bits_per_parameter(4), blocks(FP4)),
    ("int4, blocks of 64", bits_per_parameter(4), blocks(INT4)),
]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(COUNT, generator=generator)
    uniform = torch.rand(COUNT, generator=generator) * 2 - 1
    outlier = normal.clone()
    outlier[12345] = 100
    print("| format | bits per parameter | mean error, normal | and one outlier | relative error, normal | uniform |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, bits, there_and_back in FORMATS:
        means = [(there_and_back(x) - x).abs().mean().item() for x in (normal, outlier)]
        relative = [((there_and_back(x) - x).norm() / x.norm()).item() for x in (normal, uniform)]
        cells = [f"{value:#.3g}" for value in (*means, *relative)]
        print(f"| {name} | {bits:.4g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
