"""Number formats against torch's own bit patterns and torch.finfo."""

import math

import numpy as np
import pytest
import torch

from reducible.models.quantise.number_formats import (
    BF16,
    FORMATS,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    INT8,
    TF32,
    Float,
    lost,
)

HELD = [form for form in FORMATS if isinstance(form, Float) and form.dtype is not None]
CONTAINER = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def patterns(form: Float) -> list[int]:
    """All where there are few; else every boundary of an octave, with its neighbours, and some at random."""
    if form.bits <= 16:
        return list(range(2**form.bits))
    edges = [exponent << form.fraction for exponent in range(2**form.exponent)]
    near = {(edge + shift) % 2**31 for edge in edges for shift in (-1, 0, 1)}
    drawn = np.random.default_rng(0).integers(0, 2**form.bits, 3000).tolist()
    return sorted(near | {pattern | 1 << 31 for pattern in near} | set(drawn))


def by_torch(form: Float, found: list[int]) -> list[float]:
    signed = np.array(found, dtype=np.int64).astype(f"<u{form.bits // 8}").view(f"<i{form.bits // 8}")
    held = torch.from_numpy(signed.copy()).view(CONTAINER[form.bits]).view(form.dtype)
    return held.to(torch.float64).tolist()


@pytest.mark.parametrize("form", HELD, ids=lambda form: form.name)
def test_every_bit_pattern_means_what_torch_says(form: Float) -> None:
    found = patterns(form)
    for pattern, expected in zip(found, by_torch(form, found), strict=True):
        value = form.value(pattern)
        assert value == expected or (math.isnan(value) and math.isnan(expected)), hex(pattern)
        assert math.isnan(value) or math.copysign(1, value) == math.copysign(1, expected)


@pytest.mark.parametrize("form", HELD, ids=lambda form: form.name)
def test_range_and_spacing_are_those_of_finfo(form: Float) -> None:
    assert form.dtype is not None
    info = torch.finfo(form.dtype)
    assert form.bits == info.bits
    assert form.largest == info.max
    assert form.smallest_normal == info.smallest_normal
    assert form.epsilon == info.eps == form.spacing(1.0)
    few = range(2**form.bits) if form.bits < 32 else ()
    finite = sorted({abs(value) for value in map(form.value, few) if math.isfinite(value)})
    for value, following in zip(finite, finite[1:], strict=False):
        assert form.spacing(value) == following - value
    if finite:
        assert finite[1] == form.smallest


@pytest.mark.parametrize("form", HELD, ids=lambda form: form.name)
def test_rounding_is_torchs(form: Float) -> None:
    random = np.random.default_rng(1)
    reach = math.log2(form.largest) + 3
    values = np.ldexp(random.uniform(-1, 1, 4000), random.integers(int(math.log2(form.smallest)) - 2, int(reach), 4000))
    ties = [form.largest, -form.largest, form.smallest, form.smallest / 2, form.smallest / 2 * 1.001, 0.0]
    ties += [1 + form.epsilon * halves / 2 for halves in range(-3, 9)]
    # Casts start from fp32.
    start = torch.tensor([*values.tolist(), *ties]).float()
    expected = start.to(form.dtype).double().tolist()
    for x, y in zip(start.double().tolist(), expected, strict=True):
        assert form.rounded(x) == y or (math.isnan(y) and math.isnan(form.rounded(x))), x


def test_tf32_has_the_range_of_fp32_and_the_digits_of_fp16() -> None:
    assert TF32.bits == 19
    assert TF32.smallest_normal == FP32.smallest_normal and TF32.epsilon == FP16.epsilon
    # Its numbers are those of fp32 whose last 13 fraction bits are 0.
    for pattern in (0x3F800000, 0x7F7FE000, 0x00002000, 0xC2F6E000):
        assert TF32.value(pattern >> 13) == FP32.value(pattern)


def test_int8_is_twos_complement() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.int8).tolist()
    assert [INT8.value(pattern) for pattern in range(256)] == values
    assert INT8.largest == torch.iinfo(torch.int8).max


def test_a_pattern_of_too_many_bits_is_refused() -> None:
    for form in (FP16, INT8):
        with pytest.raises(ValueError, match="not a pattern of"):
            form.value(2**form.bits)


@pytest.mark.parametrize("form", [BF16, FP16, FP8_E5M2, FP8_E4M3], ids=lambda form: form.name)
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_what_is_lost_is_what_a_cast_loses(form: Float, scale: float) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 6, 20_000)
    x[::100] = 0
    cast = (x * scale).to(form.dtype).float()[x != 0]
    gone = cast == 0
    few = (cast.abs() < form.smallest_normal) & ~gone
    found = lost(x, form, scale)
    assert found.underflow == pytest.approx(float(gone.float().mean()), abs=1e-6)
    beyond = ~cast.isfinite()
    if form.special == "nan":  # there torch ends at the largest number, and 464 is where 448 is no longer nearest
        beyond = (x[x != 0] * scale).abs() >= 464
    assert found.overflow == pytest.approx(float(beyond.float().mean()), abs=2e-4)
    assert found.digits == pytest.approx(float(few.float().mean()), abs=1e-6)


@pytest.mark.parametrize("form", [FP32, BF16, FP16, FP8_E5M2, FP8_E4M3], ids=lambda form: form.name)
@pytest.mark.parametrize("x", [math.inf, -math.inf, 3e38, -3e38, 0.0, -0.0, 1e-45])
def test_what_is_at_the_ends_becomes_what_torch_makes_of_it(form: Float, x: float) -> None:
    cast = torch.tensor(x).to(form.dtype).item()
    assert (form.rounded(x), math.copysign(1, form.rounded(x))) == (cast, math.copysign(1, cast))


def test_bf16_keeps_small_gradients_that_fp16_loses_and_scaling_brings_them_back() -> None:
    """Gradients of a small network after many products: half of them below fp16's reach."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(6)))
    (layers(torch.randn(64, 32)).square().mean() * 1e-5).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in layers.parameters() if parameter.grad is not None])
    plain, scaled, bf16 = lost(gradient, FP16), lost(gradient, FP16, 2.0**16), lost(gradient, BF16)
    assert plain.underflow > 0.25 and plain.overflow == 0  # underflow comes before overflow
    assert scaled.underflow < 0.001 and scaled.overflow == 0
    assert bf16 == (0, 0, 0)
    far = lost(gradient, FP16, 2.0**60)
    assert far.overflow > 0.5
