"""Twins that read packed numbers, against layouts written apart: byte by byte, or by the gguf package. No kernel is compiled here."""

import math
from fractions import Fraction

import gguf
import numpy as np
import pytest
from bitnet_kernels import arrays, kv_cache
from bitnet_kernels.group_rows import WHOLE_ROW, Groups, unit_of
from bitnet_kernels.naive import attention, base3, dense, grouped, head_planes, ternary
from bitnet_kernels.naive import kv_cache as codes_of
from numpy.typing import NDArray

from .cases import activations, kernel_order, packed, product
from .cases import ternary as random_ternary
from .group_cases import matrix
from .group_cases import packed as laid_out

Floats = NDArray[np.float32]


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "cols"), [(1, 128), (16, 256), (37, 384), (1, 16384)])
def test_two_bit_rows(rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows)
    weights, codes = random_ternary(rng, rows, cols), activations(rng, 3, cols)
    found = ternary.unpack(packed(weights, 5), 5, rows, cols)
    assert found.dtype == np.int8 and np.array_equal(found, weights)
    sums = ternary.matmul(weights, codes)
    assert sums.dtype == np.int32 and np.array_equal(sums, product(weights, codes))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("cols", [128, 384, 1280, 1408])
def test_base_3_rows(cols: int, width: int) -> None:
    """Byte j of register g: the codes that meet byte j of registers 5 g .. 5 g + 4 of the activations, as 256 n / 243, rounded up."""
    weights = random_ternary(np.random.default_rng(cols), 3, cols)
    meets = kernel_order(weights, width).reshape(3, -1, width)
    row = [np.full(7, 0xFF, np.uint8)]
    for r in range(3):
        for g in range(0, meets.shape[1], 5):
            n = np.zeros(width, np.int64)
            for k in range(5):
                n = 3 * n + (meets[r, g + k] + 1 if g + k < meets.shape[1] else 0)
            row.append(-(-256 * n // 243))
    whole = np.concatenate([*row, np.full(9, 0xFF)]).astype(np.uint8)
    assert len(whole) == 7 + 3 * arrays.base3_row_bytes(cols, width) + 9
    found = base3.unpack(whole, 7, 3, cols, width)
    assert found.dtype == np.int8 and np.array_equal(found, weights)
    assert np.array_equal(base3.unpack(whole, 7 + arrays.base3_row_bytes(cols, width), 1, cols, width), weights[1:2])


KINDS = {
    arrays.HEAD_F32: gguf.GGMLQuantizationType.F32,
    arrays.HEAD_F16: gguf.GGMLQuantizationType.F16,
    arrays.HEAD_BF16: gguf.GGMLQuantizationType.BF16,
    arrays.HEAD_Q8_0: gguf.GGMLQuantizationType.Q8_0,
    arrays.HEAD_Q4_0: gguf.GGMLQuantizationType.Q4_0,
    arrays.HEAD_Q4_K: gguf.GGMLQuantizationType.Q4_K,
    arrays.HEAD_Q6_K: gguf.GGMLQuantizationType.Q6_K,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_head(kind: int) -> None:
    """Random bytes with finite numbers: to the bit what the gguf package makes of them, and products near float64's."""
    weights, size = arrays.HEAD_BLOCKS[kind]
    cols, rng = 512, np.random.default_rng(kind)
    raw = rng.integers(0, 256, (6, cols // weights, size), np.uint8)
    for place in {arrays.HEAD_Q4_K: (1, 3), arrays.HEAD_Q6_K: (209,), arrays.HEAD_F32: (3,)}.get(kind, (1,)):
        raw[..., place] = raw[..., place] & 0x83 | 0x28  # exponents in the middle
    expected = gguf.quants.dequantize(raw.reshape(6, -1), KINDS[kind]).reshape(6, cols)
    data = np.concatenate([np.full(8, 0xFF, np.uint8), raw.reshape(-1), np.full(5, 0xFF, np.uint8)])
    for first, last in ((0, 6), (1, 3), (5, 6)):
        found = dense.rows(data, 8, kind, first, last, cols)
        assert found.dtype == np.float32 and np.array_equal(found, expected[first:last])
    x, out = floats(cols), np.full(6, np.nan, np.float32)
    dense.head_matvec(data, 8, kind, x, out, chunk=4)
    sizes = np.abs(expected).astype(np.float64) @ np.abs(x)
    assert (np.abs(out - expected.astype(np.float64) @ x) <= 1e-5 * sizes).all()


@pytest.mark.parametrize("width", [32, 64])
def test_planes_of_a_head(width: int) -> None:
    """Codes u: bits 7 to 4 as halves of bytes, bits 3 and 2, bits 1 and 0 as I2_S fields; cut to 4, 6 or 8 bits they stand for middles."""
    rng, rows, cols = np.random.default_rng(width), 3, 900
    codes = rng.integers(0, 256, (rows, cols), np.uint8)
    scales = np.array([0.5, 1.0, 3.0], np.float32)
    order = kernel_order(codes.view(np.int8), width).view(np.uint8).reshape(rows, -1, 4, width)
    six, low = [], []
    for r, group in np.ndindex(order.shape[:2]):
        c = order[r, group]
        six += [
            c[0] >> 2 << 6 | (c[1] >> 2 & 3) << 4 | (c[2] >> 2 & 3) << 2 | c[3] >> 2 & 3,
            c[0] >> 4 | c[1] & 240,
            c[2] >> 4 | c[3] & 240,
        ]
        low.append(c[0] << 6 | (c[1] & 3) << 4 | (c[2] & 3) << 2 | c[3] & 3)
    more = np.full(3, 0x5A, np.uint8)  # behind the planes
    planes = arrays.Planes(np.concatenate([*six, more]), np.concatenate([*low, more]), scales, np.zeros((3, rows)), np.arange(rows))
    for bits in (4, 6, 8):
        unit = 2 ** (8 - bits)
        middles = np.array([u // unit * unit + (unit - 1) / 2 for u in range(256)]) - 127.5
        assert np.array_equal(head_planes.values(planes, cols, width, bits), scales[:, None] * middles[codes])


def test_top_logits() -> None:
    logits = np.array([9, 5, 1, 7, 5, 3], np.float32)
    planes = arrays.Planes(*4 * [np.zeros(0)], ids=np.array([1, 2, 3, 4, 5]))  # type: ignore[misc]
    for top, there in ((1, [3]), (2, [1, 3, 4]), (3, [1, 3, 4]), (4, [1, 3, 4, 5]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])):
        expected = [float(v) if i in there else -math.inf for i, v in enumerate(logits)]
        assert head_planes.top_logits(planes, logits, top).tolist() == expected


# a, b, c whose a * b + c is by k 2^-54 off a tie of two float32. float64 rounds k = 1 to the tie, and 3 to the number beside it.
FUSED = [(k * a * 2.0**-27, b * 2.0**-27, c) for k in (1, 3) for a, b in ((32513, 33025), (32767, 32769)) for c in (1.0, 1 + 2.0**-23)]
FUSED += [(1 + 2.0**-12, 1 + k * 2.0**-12, c) for k in (1, 3) for c in (0.0, 2.0**-60, -(2.0**-60))]  # the product is the tie


def test_a_fused_multiply_add_is_rounded_once() -> None:
    """To the nearest float32, of two the one whose last bit is 0."""
    for a, b, c in [*FUSED, *((-a, b, -c) for a, b, c in FUSED)]:
        exact, near = Fraction(a) * Fraction(b) + Fraction(c), np.float32(a * b + c)
        around = [near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))]
        nearest = min(around, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.int32)) & 1))
        assert grouped.fused(*(np.array([v], np.float32) for v in (a, b, c))).tolist() == [nearest], (a, b, c)


def whole_codes(row: Floats, digits: int) -> list[tuple[list[int], np.float32]]:
    """One group of activations by the formulas: for each digit codes and step."""
    found, before, values = [], np.float32(1), list(row)
    for _ in range(digits):
        factor = np.float32(127) / max(np.float32(max(abs(v) for v in values)), np.float32(1e-5))
        scaled = [v * factor for v in values]
        before = before * factor
        found.append(([round(float(v)) for v in scaled], np.float32(1) / before))
        values = [v - np.float32(round(float(v))) for v in scaled]
    return found


@pytest.mark.parametrize("groups", [Groups(64, 64), Groups(128, 64), Groups(64, 256), Groups(256, 256), Groups(128, WHOLE_ROW)], ids=str)
def test_groups_of_activations(groups: Groups) -> None:
    """With units of 64, groups of 256 have too few inputs for the last one."""
    unit, cols = unit_of(groups), 704 if groups.weights == 64 else 768
    x, size = floats(3, cols), groups.activations or cols
    x[1] *= 1e-7
    found = grouped.quantise(x, groups, 2)
    for token in range(3):
        for start in range(0, cols, size):
            row = x[token, start : start + size]
            for (codes, steps), (expected, step) in zip(found, whole_codes(row, 2), strict=True):
                assert codes[token, start : start + size].tolist() == expected
                assert set(steps[token, start // unit : (start + len(row)) // unit].tolist()) == {float(step)}
    assert [(codes.shape, steps.shape) for codes, steps in found] == 2 * [((3, cols), (3, cols // unit))]
    once = grouped.quantise(x, groups)
    assert len(once) == 1 and np.array_equal(once[0][0], found[0][0])


@pytest.mark.parametrize("groups", [Groups(64, 64), Groups(64, 128), Groups(128, 64), Groups(256, 128)], ids=str)
def test_products_of_groups(groups: Groups) -> None:
    """Against float64: int8 codes and their steps are what activations are; float32 rounds each sum."""
    codes, scales = matrix(np.random.default_rng(1), 19, 512, groups.weights)
    whole, x = laid_out(codes, scales, 64), floats(2, 512)
    weights = (codes.astype(np.float64) - 1) * np.repeat(scales.astype(np.float64), groups.weights, 1)
    total = np.zeros((2, 19))
    for digits in (1, 2):
        q, steps = grouped.quantise(x, groups, digits)[-1]
        exact = (q * np.repeat(steps.astype(np.float64), unit_of(groups), 1)) @ weights.T
        total += exact
        one = grouped.matmul(whole, 64, 19, q, steps, groups)
        both = grouped.project(whole, 64, 19, x, groups, digits)
        assert one.dtype == both.dtype == np.float32
        assert np.abs(one - exact).max() <= 1e-6 * np.abs(exact).max() * 8
        assert np.abs(both - total).max() <= 1e-6 * np.abs(total).max() * 8


@pytest.mark.parametrize(("bits", "half"), [(8, 127.0), (4, 7.5), (3, 3.5)])
def test_steps_that_need_no_rounding_up(bits: int, half: float) -> None:
    """An upper half of a float32 that is exact stays, and one bit more makes the next."""
    for exact, power in ((0x3F80, 0), (0x4100, 3), (0x3D80, -4)):
        least = np.float32(half * 2.0**power)
        x = np.array([[least, 0], [-least, 0], [np.nextafter(least, np.float32(1e9)), 0]], np.float32)
        assert codes_of.quantise(x, bits)[1].tolist() == [exact, exact, exact + 1]


def as_stored(x: Floats, kind: str) -> Floats:
    """(positions, heads, dim) from a text's beginning, as a cache of this kind gives them back."""
    if kind in kv_cache.FLOAT_TYPES:
        return x if kind == "f32" else x.astype(np.float16).astype(np.float32)
    bits = kv_cache.QUANTISED_BITS[kind]
    back = codes_of.dequantise(*codes_of.quantise(x, bits), bits)
    back[:1] = x[:1] if kind == "q3" else back[:1]
    return back


@pytest.mark.parametrize("kind", kv_cache.CACHE_TYPES)
@pytest.mark.parametrize("dim", [20, 72])
def test_caches_in_pages(kind: str, dim: int) -> None:
    """What is stored in two goes, in pages out of order, comes back. Floats lie where kernels/kv_cache.py says. The rest is untouched."""
    table, pages = kv_cache.Table(np.array([2, 0, 3]), 16), [2, 0, 3]
    cache = kv_cache.new_cache(2, 3, dim, 16, kind, pages=4)
    keys, values = floats(40, 3, dim), floats(40, 3, dim, seed=1)
    for array in cache:
        array.fill(0x55)
    attention.store(cache, 1, 0, keys[:5], values[:5], table)
    attention.store(cache, 1, 5, keys[5:], values[5:], table)
    for length in (1, 7, 40):
        for x, back in zip((keys, values), attention.stored(cache, 1, length, dim, table), strict=True):
            assert back.dtype == np.float32 and np.array_equal(back, as_stored(x, kind)[:length].swapaxes(0, 1))
    assert all((array[0] == array.dtype.type(0x55)).all() for array in cache)
    places = [16 * pages[p // 16] + p % 16 for p in range(40)]
    others = np.setdiff1d(np.arange(64), places)
    assert (cache.values[1, :, others] == 0x55).all()
    if kind in kv_cache.FLOAT_TYPES:
        stored = np.float32 if kind == "f32" else np.float16
        for p, place in enumerate(places):
            assert np.array_equal(cache.keys[1, :, place // 16, :, place % 16].view(stored), keys[p].astype(stored))
            assert np.array_equal(cache.values[1, :, place, :dim].view(stored), values[p].astype(stored))
        assert (cache.values[1, :, :, dim:] == 0x55).all()
    elif kind == "q3":
        for first in (cache.first_key, cache.first_value):  # of page 2, where the text begins
            assert not first[1, :, 2, dim:].any() and (first[1, :, [0, 1, 3]] == 0x55).all()


@pytest.mark.parametrize("size", [1.0, 40.0], ids=["usual", "scores past what exp takes in float32"])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_attention_by_its_formula(window: int, size: float) -> None:
    queries, keys, values = floats(3, 4, 6) * np.float32(size), floats(2, 9, 6, seed=1), floats(2, 9, 6, seed=2)
    found = attention.attend(queries, keys, values, 5, window)
    assert found.shape == (3, 24) and found.dtype == np.float32
    for t, head in np.ndindex(3, 4):
        seen = [p for p in range(9) if 5 + t - window < p <= 5 + t]
        weights = [math.exp(math.fsum((queries[t, head] * keys[head // 2, p]).tolist()) / math.sqrt(6)) for p in seen]
        expected = np.array(weights) @ values[head // 2, seen] / sum(weights)
        assert np.abs(found[t, 6 * head : 6 * head + 6] - expected).max() < 2e-6 * size
    if window == 100:
        assert np.array_equal(attention.attend(queries, keys, values, 5), found)
