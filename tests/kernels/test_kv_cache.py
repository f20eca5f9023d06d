"""Codes of quantised KV caches by their definitions: how wrong they may be, how they are packed, how much memory they take."""

import math
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.kv_cache import QUANTISED_BITS, QuantisedCache, cache_bytes, new_cache
from bitnet_kernels.naive import attention as naive_attention
from bitnet_kernels.naive import kv_cache as twin
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HALF = {8: 127.0, 4: 7.5, 3: 3.5}  # steps from the middle to the ends
DIMS = [2, 8, 20, 64, 80, 96, 100, 128, 256]


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", HALF)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e-5, 1.0, 300.0, 1e20, 1e37])
def test_codes_are_the_nearest(bits: int, scale: float) -> None:
    """A step is max|x| / half, rounded up by 2^-7 at most; a code then is within half a step, but for the rounding of x / step."""
    x = floats(np.random.default_rng(bits), 500, 64) * np.float32(scale)
    codes, halves = twin.quantise(x, bits)
    steps = twin.widened(halves).astype(np.float64)
    exact = np.maximum(np.abs(x).max(-1).astype(np.float64), 1e-30) / HALF[bits]
    assert np.all(steps >= exact * (1 - 2**-24))
    assert np.all(steps <= exact * (1 + 2**-7))
    assert codes.min() >= (-127 if bits == 8 else 0)
    assert codes.max() <= (127 if bits == 8 else 2**bits - 1)
    back = twin.dequantise(codes, halves, bits)
    assert np.all(np.abs(back - x) <= steps[:, None] * (0.5 + 2 * HALF[bits] * 2**-22))
    # Exact in float32: a step has 8 significant bits, a code at most 8.
    middle = 0 if bits == 8 else HALF[bits]
    assert np.array_equal(back, (codes - middle) * steps[:, None])


@pytest.mark.parametrize("bits", HALF)
def test_the_largest_number_takes_the_last_code(bits: int) -> None:
    for largest in (1.0, 3.7, np.float32(np.pi), 1e-20, 3e38):
        codes, _ = twin.quantise(np.array([[largest, -largest, 0]], np.float32), bits)
        ends = [[127, -127]] if bits == 8 else [[2**bits - 1, 0]]
        # Rounding the step up moves the ends by under 2^-7 of half the range, for 8 bits one code.
        assert np.all(np.abs(codes[:, :2] - ends) <= (bits == 8))


def test_a_head_of_zeros() -> None:
    for bits in HALF:
        codes, halves = twin.quantise(np.zeros((3, 16), np.float32), bits)
        assert np.all(np.abs(twin.dequantise(codes, halves, bits)) < 1e-30)


def bit_string(words: Any, bits: int) -> str:
    """Words of `bits` bits as text, the first word's lowest bit first."""
    return "".join(format(int(word), f"0{bits}b")[::-1] for word in words)


@pytest.mark.parametrize("dim", DIMS)
def test_packing_of_keys_and_values(dim: int) -> None:
    """Against the layouts in kernels/kv_cache.py, bit by bit."""
    rng = np.random.default_rng(dim)
    for bits in (4, 3):
        codes = rng.integers(0, 2**bits, dim)
        keys = twin.pack_keys(codes, bits).reshape(-1)  # one byte, or three, a group
        filled = np.concatenate([codes, np.zeros(-dim % 8, int)])
        assert bit_string(keys, 8) == bit_string(filled, bits)
    four = rng.integers(0, 16, dim)
    packed = twin.pack_values(four, 4)
    assert len(packed) == -(-dim // 32) * 16
    for d, code in enumerate(four):
        assert packed[d // 32 * 16 + d % 16] >> 4 * (d % 32 // 16) & 15 == code
    three = rng.integers(0, 8, dim)
    packed = twin.pack_values(three, 3)
    assert packed.shape == (-(-dim // 64), 24)
    for d, code in enumerate(three):
        text = bit_string(packed[d // 64], 8)
        at = 12 * (d % 16) + 3 * (d % 64 // 16)
        assert text[at : at + 3] == bit_string([code], 3)


@pytest.mark.parametrize("kind", QUANTISED_BITS)
@pytest.mark.parametrize("dim", DIMS)
def test_what_was_stored_comes_back(kind: str, dim: int) -> None:
    rng, bits = np.random.default_rng(dim), QUANTISED_BITS[kind]
    keys, values = floats(rng, 35, 3, dim), floats(rng, 35, 3, dim)
    cache = new_cache(2, 3, dim, 35, kind)
    naive_attention.store(cache, 1, 0, keys[:20], values[:20])
    naive_attention.store(cache, 1, 20, keys[20:], values[20:])
    for x, back in zip((keys, values), naive_attention.stored(cache, 1, 35, dim), strict=True):
        expected = twin.dequantise(*twin.quantise(x, bits), bits)
        if kind == "q3":
            expected[0] = x[0]
        assert np.array_equal(back, expected.swapaxes(0, 1))
    assert not cache.keys[0].any()
    assert not cache.values[0].any()


def test_bits_a_number() -> None:
    """One step of 16 bits a head of keys or values; q3 keeps one position whole."""
    for kind, bits in QUANTISED_BITS.items():
        for dim in (64, 128, 256):
            numbers = 2 * 30 * 5 * 2048 * dim
            first = 2 * 4 * 30 * 5 * dim if kind == "q3" else 0
            assert cache_bytes(kind, 30, 5, dim, 2048) == numbers * bits // 8 + numbers // dim * 2 + first
    assert cache_bytes("f16", 30, 5, 128, 2048) == 2 * cache_bytes("f32", 30, 5, 128, 2048) // 4


@pytest.mark.parametrize("kind", ["f32", "f16", *QUANTISED_BITS])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("context", [1, 16, 17, 1000])
def test_cache_bytes_are_those_of_the_arrays(kind: str, dim: int, context: int) -> None:
    assert cache_bytes(kind, 2, 3, dim, context) == sum(part.nbytes for part in new_cache(2, 3, dim, context, kind))


def test_finer_types_are_nearer() -> None:
    """Attention of one query over 200 positions: the mean error falls with the step, 2 half steps to 127."""
    rng = np.random.default_rng(1)
    queries, keys, values = floats(rng, 1, 4, 64), floats(rng, 200, 2, 64), floats(rng, 200, 2, 64)
    exact = naive_attention.attend(queries, keys.swapaxes(0, 1), values.swapaxes(0, 1), 199)
    errors = []
    for kind in ("q3", "q4", "q8", "f16"):
        cache = new_cache(1, 2, 64, 200, kind)
        naive_attention.store(cache, 0, 0, keys, values)
        assert isinstance(cache, QuantisedCache) == (kind != "f16")
        errors.append(float(np.abs(naive_attention.attend(queries, *naive_attention.stored(cache, 0, 200, 64), 199) - exact).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[1] / 8
    assert math.isfinite(errors[0])
