"""The mathematics of quantisation against bitsandbytes, bit for bit, against published errors and exact formulas."""

import math

import bitsandbytes.functional as peer
import pytest
import torch
from torch import Tensor

from reducible.models.quantise.reference import (
    CONSTANTS_BLOCK,
    DYNAMIC,
    FP4,
    INT4,
    INT8,
    NF4,
    Quantised,
    bits_per_parameter,
    dequantise,
    dequantise_constants,
    pack,
    quantise,
    quantise_constants,
    unpack,
)

LEVELS = {"nf4": NF4, "fp4": FP4}
SHAPES = [(64,), (8, 64), (100, 130), (3, 7), (1,), (63,), (65,), (257, 129), (512, 512), (4, 5, 6)]
"""Most are no whole number of blocks of 64 or 256; some have an odd count."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def mean_error(x: Tensor, quantised: Quantised) -> float:
    return float((dequantise(quantised) - x).abs().mean())


def relative_error(x: Tensor, quantised: Quantised) -> float:
    return float((dequantise(quantised) - x).norm() / x.norm())


# Bit-equal to bitsandbytes


def test_levels_are_those_of_bitsandbytes_to_the_bit() -> None:
    assert torch.equal(NF4, peer.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(FP4, peer.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(INT8, peer.create_linear_map(signed=True))
    assert torch.equal(DYNAMIC, peer.create_dynamic_map(signed=True))


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize(
    ("shape", "stance"),
    [
        *((shape, "force_eager" if math.prod(shape) % 2 else "default") for shape in SHAPES),
        pytest.param((3, 7), "default", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_4_bit_codes_constants_and_weights_are_those_of_bitsandbytes(
    kind: str, shape: tuple[int, ...], stance: str
) -> None:
    """bitsandbytes compiles its kernel for an odd number of weights, which takes long."""
    with torch.compiler.set_stance(stance):
        assert_bit_equal(normal(*shape), kind)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_too(kind: str, dtype: torch.dtype) -> None:
    assert_bit_equal(normal(100, 130).to(dtype), kind)


def assert_bit_equal(x: Tensor, kind: str) -> None:
    packed, state = peer.quantize_4bit(x, blocksize=64, quant_type=kind)
    ours = quantise(x, LEVELS[kind])
    # Of an odd number of weights the last half byte is nobody's.
    assert torch.equal(ours.codes, unpack(packed.flatten(), x.numel()))
    assert x.numel() % 2 or torch.equal(pack(ours.codes), packed.flatten())
    assert torch.equal(ours.constants, state.absmax)
    # Theirs makes (1, n) of (n,).
    assert torch.equal(dequantise(ours, x.dtype), peer.dequantize_4bit(packed, state).view(x.shape))


@pytest.mark.parametrize("kind", LEVELS)
def test_a_block_of_zeros_stays_zero(kind: str) -> None:
    x = normal(4, 64)
    x[1] = 0
    packed, state = peer.quantize_4bit(x, blocksize=64, quant_type=kind)
    ours = quantise(x, LEVELS[kind])
    assert torch.equal(pack(ours.codes), packed.flatten()) and torch.equal(ours.constants, state.absmax)
    assert not dequantise(ours)[1].any() and dequantise(ours)[0].any()


@pytest.mark.parametrize("levels", [DYNAMIC, INT8], ids=["dynamic", "linear"])
@pytest.mark.parametrize("count", [4096, 1000, 255])
def test_8_bit_codes_are_those_of_bitsandbytes_search(levels: Tensor, count: int) -> None:
    """Its CPU kernel for float64 measures the distance to every level, as its GPU kernel does in effect."""
    x = uniform(count)
    codes, constants = torch.ops.bitsandbytes.quantize_blockwise(x.double(), levels, 256)
    ours = quantise(x, levels, 256)
    assert torch.equal(ours.codes, codes) and torch.equal(ours.constants, constants)


def by_table(x: Tensor, levels: Tensor, block: int) -> Tensor:
    """Codes as bitsandbytes' CPU kernel finds them: of w / c, rounded to one of 65,536 values between -1 and 1."""
    rows = x.view(-1, block)
    scaled = (rows * (1 / rows.abs().amax(dim=1, keepdim=True))).clamp(-1, 1).flatten()
    rounded = 2 * ((scaled + 1) * 0.5 * 65535 + 0.5).floor() / 65535 - 1
    return torch.bucketize(rounded, (levels[:-1] + levels[1:]) / 2).to(torch.uint8)


@pytest.mark.parametrize("levels", [DYNAMIC, INT8], ids=["dynamic", "linear"])
def test_bitsandbytes_on_a_cpu_rounds_to_a_table_before_it_searches(levels: Tensor) -> None:
    """So its codes are not always the nearest: by how much, and that nothing else differs."""
    x = uniform(2**18)
    codes, state = peer.quantize_blockwise(x, code=levels, blocksize=256)
    ours = quantise(x, levels, 256)
    assert torch.equal(codes, by_table(x, levels, 256))
    assert torch.equal(ours.constants, state.absmax)
    assert 0.0005 < (codes != ours.codes).float().mean() < 0.002
    theirs = Quantised(codes, state.absmax, levels, 256, x.shape)
    assert torch.equal(dequantise(theirs), peer.dequantize_blockwise(codes, state))
    # The table moves a value by 1/65535 at most, so it can cost twice that of the constant, no more.
    further = (dequantise(theirs) - x).abs() - (dequantise(ours) - x).abs()
    assert 0 < further.max() < 2.1 / 65535


def test_double_quantisation_is_that_of_bitsandbytes_but_for_its_table() -> None:
    x = normal(2000, 1000)
    packed, state = peer.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    quantised = quantise(x, NF4)
    double = quantise_constants(quantised.constants)
    assert torch.equal(double.mean, state.offset)
    assert torch.equal(double.rest.constants, state.state2.absmax)
    differ = (double.rest.codes != state.absmax).float().mean()
    assert differ == pytest.approx(0.0017, abs=0.0004)
    rest = quantised.constants - double.mean
    whole = len(rest) // CONSTANTS_BLOCK * CONSTANTS_BLOCK
    assert torch.equal(state.absmax[:whole], by_table(rest[:whole], DYNAMIC, CONSTANTS_BLOCK))
    # From its codes we get its weights, to the bit.
    theirs = Quantised(state.absmax, state.state2.absmax, DYNAMIC, CONSTANTS_BLOCK, rest.shape)
    constants = dequantise(theirs) + state.offset
    weights = dequantise(Quantised(quantised.codes, constants, NF4, 64, x.shape))
    assert torch.equal(weights, peer.dequantize_4bit(packed, state))


# What it costs, and why blocks and levels are what they are


@pytest.mark.parametrize(("kind", "expected", "deviation"), [("nf4", 0.072798, 0.000074), ("fp4", 0.096543, 0.000111)])
def test_errors_of_normal_weights_are_the_published_ones(kind: str, expected: float, deviation: float) -> None:
    """bitsandbytes' own acceptance values, from 1024 x 1024 normal weights; three of their standard deviations."""
    x = normal(1024, 1024)
    assert mean_error(x, quantise(x, LEVELS[kind])) == pytest.approx(expected, abs=3 * deviation)


def test_one_outlier_ruins_a_tensor_and_blocks_contain_it() -> None:
    x = normal(2**20)
    x[12345] = 100
    whole, blocks = (mean_error(x, quantise(x, INT8, block)) for block in (None, 64))
    assert whole == pytest.approx(0.197, abs=0.0005)
    assert whole == pytest.approx(100 / 127 / 4, rel=0.005)  # errors even between 0 and half a step
    assert blocks == pytest.approx(0.0050, abs=0.0001)


@pytest.mark.parametrize(("levels", "most"), [(INT4, 7), (INT8, 127)], ids=["int4", "int8"])
def test_even_levels_miss_uniform_weights_by_the_exact_formula(levels: Tensor, most: int) -> None:
    """The largest of n has E c^2 = n / (n + 2) and no error; others c / most / sqrt(12), and are 1 / sqrt(3) large."""
    x = uniform(2**20)
    assert relative_error(x, quantise(x, levels)) == pytest.approx(math.sqrt(63 / 66) / most / 2, rel=0.005)


def test_weights_of_an_lstm_are_uniform_and_nf4_is_not_for_them() -> None:
    torch.manual_seed(0)
    weights = torch.cat([w.detach().flatten() for n, w in torch.nn.LSTM(256, 256).named_parameters() if "weight" in n])
    errors = [relative_error(weights, quantise(weights, levels)) for levels in (NF4, INT4, INT8)]
    assert errors == pytest.approx([0.092, 0.070, 0.0039], rel=0.02)
    x = normal(2**18)
    assert relative_error(x, quantise(x, NF4)) < relative_error(x, quantise(x, INT4))


def code_entropy(quantised: Quantised) -> float:
    """Bits that a code says, of the 4 that it takes."""
    shares = torch.bincount(quantised.codes.int(), minlength=16) / len(quantised.codes)
    return float(-(shares * shares.clamp(min=1e-30).log2()).sum())


def test_nf4_uses_its_16_levels_more_evenly_on_normal_weights_than_even_levels_do() -> None:
    """Not quite evenly: the largest of 64 lies at 2.6 deviations, the outermost quantile at 1.8 (Yoshida 2023)."""
    x = normal(2**20)
    assert code_entropy(quantise(x, NF4)) == pytest.approx(3.88, abs=0.01)
    assert code_entropy(quantise(x, INT4)) == pytest.approx(3.65, abs=0.01)


def test_int8_is_rounding_to_127ths_of_the_largest() -> None:
    x = normal(1000, seed=3)
    expected = (x * 127 / x.abs().max()).round() * x.abs().max() / 127
    torch.testing.assert_close(dequantise(quantise(x, INT8, None)), expected, rtol=1e-6, atol=1e-6)


def test_bits_per_parameter() -> None:
    assert bits_per_parameter(4) == 4.5
    assert bits_per_parameter(4, double=True) == pytest.approx(4.127, abs=0.0001)
    # And what is really held, of a tensor of whole blocks.
    quantised = quantise(normal(2**20), NF4)
    double = quantise_constants(quantised.constants)
    held = [pack(quantised.codes), double.rest.codes, double.rest.constants]
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in held) / 2**20
    assert bits == bits_per_parameter(4, double=True)


def test_double_quantisation_costs_almost_nothing() -> None:
    x = normal(2**20)
    quantised = quantise(x, NF4)
    again = dequantise_constants(quantise_constants(quantised.constants))
    assert relative_error(quantised.constants, quantise(quantised.constants, DYNAMIC, 256)) > 0
    doubled = Quantised(quantised.codes, again, NF4, 64, x.shape)
    assert 1 < mean_error(x, doubled) / mean_error(x, quantised) < 1.0015


# Storage


def test_packed_codes_come_back_whatever_their_number() -> None:
    for count in (1, 2, 7, 64):
        codes = torch.randint(16, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
        assert torch.equal(unpack(pack(codes), count), codes)


def test_what_cannot_be_quantised_is_refused() -> None:
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match="infinities or NaN"):
            quantise(torch.tensor([1.0, bad]), NF4)
