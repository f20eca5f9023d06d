"""The activation quantiser against its twin: the same codes, factor and sum, bit for bit."""

import numpy as np
import pytest
from bitnet_kernels import arrays
from bitnet_kernels.inputs import own_row, quantise_row_4
from bitnet_kernels.naive.quantise import mean_magnitude
from bitnet_kernels.naive.quantise import quantise as naive
from bitnet_kernels.quantise import quantise_row
from bitnet_kernels.ternary import WIDTH
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from numpy.typing import NDArray

from .cases import kernel_order, natural_order, padded_length

COLS = (1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 640, 1000, 2560, 5460, 6912, 16384)


KINDS = {"int8": arrays.INT8, "int4": arrays.INT4, "fp4": arrays.FP4}


def rounded(x: NDArray[np.float32], kind: int, out: NDArray[np.int8], length: int) -> tuple[np.float32, int]:
    """By the kernel for this kind."""
    if kind == arrays.INT8:
        return quantise_row(x, len(x), out, length)  # type: ignore[no-any-return]
    row = np.full(-(-len(x) // 16) * 16, np.nan, np.float32)
    own_row(x, len(x), row)
    return quantise_row_4(row, len(x), kind, out, length)  # type: ignore[no-any-return]


def check(x: NDArray[np.float32], kind: int = arrays.INT8) -> NDArray[np.int8]:
    """Quantise into an array that is longer than it must be; returns the codes in natural order."""
    cols = len(x)
    length = padded_length(cols, WIDTH)
    out = np.full(length + 64, 99, np.int8)
    factor, total = rounded(x, kind, out, length)
    codes, factors = naive(x[None], kind)
    assert np.float32(factor) == factors[0]
    assert total == codes.sum(dtype=np.int64)
    assert np.all(out[length:] == 99)
    natural = natural_order(out[None, :length], WIDTH)[0]
    assert np.array_equal(natural[:cols], codes[0])
    assert not natural[cols:].any()
    assert np.array_equal(out[:length], kernel_order(codes, WIDTH)[0])
    return natural[:cols]


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-5, 1.0, 1e4, 1e30, 3e38])
def test_random_values_of_every_size(cols: int, size: float) -> None:
    rng = np.random.default_rng(cols)
    for kind in KINDS.values():
        check((rng.uniform(-1, 1, cols) * size).astype(np.float32), kind)
        check((rng.standard_cauchy(cols) * min(size, 1e30)).astype(np.float32), kind)


@pytest.mark.parametrize("cols", COLS)
def test_zeros(cols: int) -> None:
    """The largest value is taken as 1e-5 at least, so the factor stays finite."""
    for kind in KINDS.values():
        assert not check(np.zeros(cols, np.float32), kind).any()
        assert not check(np.full(cols, -0.0, np.float32), kind).any()


def test_one_value_reaches_127_and_the_sign_is_kept() -> None:
    for value, code in ((3.7, 127), (-3.7, -127), (1e-5, 127), (0.5e-5, 64), (1e-45, 0)):
        x = np.zeros(40, np.float32)
        x[33] = value
        assert check(x)[33] == code


def test_half_way_values_go_to_the_even_code() -> None:
    """With 127 as the largest value the factor is 1, so .5 stays .5."""
    x = np.concatenate([[127.0], np.arange(-126.5, 127, 1)]).astype(np.float32)
    codes = check(x)
    assert np.all(codes[1:] % 2 == 0)
    assert np.array_equal(codes[1:], np.rint(x[1:]))


def test_neighbours_of_half_way_values() -> None:
    """One float32 step to either side decides; the factor is not a power of two here."""
    largest = np.float32(3.3)
    factor = np.float32(127) / largest
    halves = (np.arange(-126.5, 127, 1) / factor).astype(np.float32)
    for x in (halves, np.nextafter(halves, np.float32(-9)), np.nextafter(halves, np.float32(9))):
        check(np.concatenate([x, [largest]]).astype(np.float32))


@given(any_array(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_any_finite_values(x: NDArray[np.float32]) -> None:
    for kind in KINDS.values():
        check(x, kind)


def test_int4_by_the_formula() -> None:
    """BitNet a4.8, equation 7, in float64 where nothing is near a border; a step is mean|x| / sqrt(7)."""
    x = np.concatenate([np.linspace(-4, 4, 99), [0.0] * 60]).astype(np.float32)
    step = np.abs(x).mean(dtype=np.float64) / np.sqrt(7)
    codes = check(x, arrays.INT4)
    assert np.array_equal(codes, np.clip(np.rint(x / step), -8, 7))
    assert (codes.min(), codes.max()) == (-8, 7)


def test_fp4_takes_the_nearest_of_the_values_of_e2m1() -> None:
    """Where two are equally near, the one with mantissa bit 0: 0, 1, 2 and 4, not 0.5, 1.5, 3 and 6."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = np.concatenate([np.arange(-96, 97) / 16, np.zeros(40)]).astype(np.float32)  # the largest is 6, so the scale is 1
    codes = check(x, arrays.FP4)
    for value, code in zip(x, codes, strict=True):
        distance = np.abs(values - abs(value))
        nearest = np.flatnonzero(distance == distance.min())
        assert abs(code) / 2 == values[nearest[0] if nearest[0] % 2 == 0 else nearest[-1]], value
        assert code * value >= 0


@pytest.mark.parametrize("kind", ["int4", "fp4"])
def test_neighbours_of_borders(kind: str) -> None:
    """One float32 step to either side of every border between two codes."""
    between = np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5, 5.5, 6.5, 7, 7.5, 9, 10, 11.9, 12])
    x = np.concatenate([between, -between, np.full(37, 3.3)]).astype(np.float32)
    factor = naive(x[None], KINDS[kind])[1][0]
    near = (np.concatenate([between, -between]) / factor).astype(np.float32)
    for values in (near, np.nextafter(near, np.float32(-99)), np.nextafter(near, np.float32(99))):
        check(np.concatenate([values, x]), KINDS[kind])


def test_the_mean_is_right_to_the_last_bit() -> None:
    """Against exact sums of fractions, also where float32 sums would lose half of their digits."""
    from math import fsum

    for cols in COLS:
        x = (np.random.default_rng(cols).standard_normal(cols) * 10.0 ** np.arange(cols).clip(0, 9)).astype(np.float32)
        assert mean_magnitude(x[None])[0] == np.float32(fsum(np.abs(x).tolist()) / cols)


def test_a_value_that_is_no_number_is_not_lost() -> None:
    """Its code is some number, but the factor says that the token is broken."""
    for kind in KINDS.values():
        x = np.ones(100, np.float32)
        x[37] = np.nan
        assert np.isnan(rounded(x, kind, np.zeros(256, np.int8), 256)[0])
        assert np.isnan(naive(x[None], kind)[1][0])


def test_codes_are_the_same_wherever_the_arrays_lie() -> None:
    """As for the norm (test_floats.py)."""
    x = np.random.default_rng(4).standard_normal(300).astype(np.float32)
    codes, length = naive(x[None])[0], padded_length(300, WIDTH)
    expected = kernel_order(codes, WIDTH)[0]
    for gap in range(0, 1300, 4):
        memory = np.zeros(4000, np.uint8)
        near, out = memory[:1200].view(np.float32), memory[1200 + gap : 1200 + gap + length].view(np.int8)
        near[:] = x
        quantise_row(near, 300, out, length)
        assert np.array_equal(out, expected), gap


def test_the_width_of_a_row_leaves_room_for_every_instruction_set() -> None:
    for cols in COLS:
        assert arrays.padded(cols) >= padded_length(cols, WIDTH)
        assert arrays.padded(cols) % (4 * WIDTH) == 0
