"""Float kernels against their twins and against float64. Each tolerance follows from the number of roundings; u is float32's, 2^-24."""

import math
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import arrays, attention, dense, dense_rows, float_cache, glu, isa, norm, rope
from bitnet_kernels.angles import angles
from bitnet_kernels.kv_cache import Cache, new_cache
from bitnet_kernels.naive import attention as naive_attention
from bitnet_kernels.naive import dense as naive_dense
from bitnet_kernels.naive import glu as naive_glu
from bitnet_kernels.naive import norm as naive_norm
from bitnet_kernels.naive import rope as naive_rope
from bitnet_kernels.simd import floats as simd_floats
from numba import njit
from numpy.typing import NDArray

from .attending import attend

U = 2.0**-24
CONVERTS = {"f16c", "neon"}  # features with instructions between float16 and float32
CANARY = np.float32(-1234.5)
Floats = NDArray[np.float32]


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


# ---- RMSNorm ----


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 128, 2560, 6912])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e4, 1e18])
def test_rms_norm(size: int, scale: float) -> None:
    """Mean, + eps, root, division and two products: 6 roundings."""
    rng = np.random.default_rng(size)
    x, weights, out = floats(rng, size) * np.float32(scale), floats(rng, size + 7), np.full(size + 3, CANARY)
    norm.rms_norm(x, weights, 5, size, 1e-5, out)
    exact = weights[5 : 5 + size] * (x / np.sqrt(np.mean(np.square(x, dtype=np.float64)) + 1e-5))
    assert np.all(np.abs(out[:size] - exact) <= 6 * U * np.abs(exact))
    assert np.all(np.abs(out[:size] - naive_norm.rms_norm(x, weights[5 : 5 + size], 1e-5)) <= 4 * U * np.abs(exact))
    assert np.all(out[size:] == CANARY)


def test_rms_norm_is_the_same_wherever_the_arrays_lie() -> None:
    """A compiled loop has several versions and asks where its arrays are, to be safe if they overlap: all must give the same bits."""
    rng = np.random.default_rng(4)
    x, weights, offset = floats(rng, 128), floats(rng, 200), 60
    expected = naive_norm.rms_norm(x, weights[offset : offset + 128], 1e-5)
    for gap in range(300):
        memory = np.zeros(1000, np.float32)
        near, out = memory[:200], memory[200 + gap : 328 + gap]
        near[:] = weights
        norm.rms_norm(x, near, offset, 128, 1e-5, out)
        assert np.array_equal(out, expected), gap


def test_rms_norm_in_place_and_of_zeros() -> None:
    rng = np.random.default_rng(1)
    x, weights, out = floats(rng, 200), floats(rng, 200), np.empty(200, np.float32)
    norm.rms_norm(x, weights, 0, 200, 1e-5, out)
    norm.rms_norm(x, weights, 0, 200, 1e-5, x)
    assert np.array_equal(x, out)
    x[:] = 0
    norm.rms_norm(x, weights, 0, 200, 1e-5, out)
    assert not out.any()


# ---- RoPE ----


@pytest.mark.parametrize("half", [1, 3, 8, 32, 64, 80])
def test_rope(half: int) -> None:
    rng = np.random.default_rng(half)
    cos, sin = angles(12, 2 * half, 500000.0)
    source, out = floats(rng, 2 * half + 5), np.full(2 * half + 4, CANARY)
    rope.rotate(source, 5, cos[11], sin[11], half, out, 2)
    expected = naive_rope.rotate(source[5:].reshape(1, 1, -1), cos[11:], sin[11:]).reshape(-1)
    # Two products and a sum; a compiler that fuses them rounds once less. Each is at most |pair| in size.
    size = np.tile(np.hypot(source[5 : 5 + half], source[5 + half :]), 2)
    assert np.all(np.abs(out[2:-2] - expected) <= 3 * U * size)
    assert np.all(out[[0, 1, -2, -1]] == CANARY)
    rope.rotate(source, 5, cos[11], sin[11], half, source, 5)
    assert np.array_equal(source[5:], out[2:-2])


@pytest.mark.parametrize("half", [1, 3, 8, 32, 48, 80])
def test_rope_of_neighbours(half: int) -> None:
    """To the bit what `rotate` makes of the head in its order; kernel and twin."""
    rng = np.random.default_rng(half)
    cos, sin = angles(12, 2 * half, 500000.0)
    source, out = floats(rng, 2 * half + 5), np.full(2 * half + 4, CANARY)
    rope.rotate_pairs(source, 5, cos[11], sin[11], half, out, 2)
    ordered, expected = np.concatenate([source[5::2], source[6::2]]), np.empty(2 * half, np.float32)
    rope.rotate(ordered, 0, cos[11], sin[11], half, expected, 0)
    assert np.array_equal(out[2:-2], expected)
    assert np.all(out[[0, 1, -2, -1]] == CANARY)
    heads = source[5:].reshape(1, 1, -1)
    twin = naive_rope.rotate(ordered.reshape(1, 1, -1), cos[11:], sin[11:])
    assert np.array_equal(naive_rope.rotate_pairs(heads, cos[11:], sin[11:]), twin)


def test_rope_angles_with_factors() -> None:
    """A factor of 4 at a rotation is the position divided by 4 there."""
    factors = np.ones(32, np.float32)
    factors[20:] = 4
    plain, stretched = angles(64, 64, 10000.0), angles(64, 64, 10000.0, factors)
    for a, b in zip(plain, stretched, strict=True):
        assert np.array_equal(a[:, :20], b[:, :20])
        assert np.array_equal(a[:16, 20:], b[::4, 20:])


def test_rope_angles_at_far_positions() -> None:
    cos, sin = angles(4096, 128, 500000.0)
    assert cos.shape == sin.shape == (4096, 64)
    assert cos.dtype == sin.dtype == np.float32
    # By Python's float64: the angle is one float32 product, so its error grows with the position.
    for position, i in ((0, 0), (1, 63), (4095, 0), (4095, 1), (4095, 63)):
        angle = position * 500000.0 ** (-2 * i / 128)
        assert abs(cos[position, i] - math.cos(angle)) <= 4 * U * max(1, angle)
        assert abs(sin[position, i] - math.sin(angle)) <= 4 * U * max(1, angle)


# ---- gated unit ----


@pytest.mark.parametrize("activation", [arrays.RELU2, arrays.SILU, arrays.GELU])
@pytest.mark.parametrize("size", [1, 5, 16, 64, 333])
def test_gated(activation: int, size: int) -> None:
    rng = np.random.default_rng(size)
    gate, up = floats(rng, size + 4) * np.float32(8), floats(rng, size + 4)
    expected, before = naive_glu.gated(gate, up, activation), gate.copy()
    glu.gated(gate, up, activation, 2, 2 + size)
    middle = slice(2, 2 + size)
    # exp may differ by an ulp or two between libraries; then come a sum, a division and a product. arrays.GELU rounds exp's argument first.
    argument = np.abs(1.6 * (before + 0.0447 * before**3))[middle] if activation == arrays.GELU else 0
    assert np.all(np.abs(gate[middle] - expected[middle]) <= (8 + 4 * argument) * U * np.abs(expected[middle]) + 1e-35)
    assert np.array_equal(gate[[0, 1, -2, -1]], before[[0, 1, -2, -1]])


def test_relu2_zeros_are_exact_and_large_values_are_finite() -> None:
    gate = np.array([-1e30, -1.0, -0.0, 0.0, -1e-40, 1e15, 300.0], np.float32)
    up = np.array([1e30, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0], np.float32)
    glu.gated(gate, up, arrays.RELU2, 0, 7)
    assert not gate[:5].any()
    assert np.array_equal(gate[5:], np.array([1e15, 300], np.float32) ** 2)  # 300² overflows float16


def test_silu_at_the_ends() -> None:
    """exp(-gate) overflows float32 from 88.8 on: the result there is 0, not NaN, and without a floating-point warning."""
    gate = np.array([-1e38, -1000.0, -104.0, -89.0, -88.0, -20.0, 0.0, 20.0, 89.0, 1000.0, 1e38], np.float32)
    exact = gate.astype(np.float64) / (1 + np.exp(np.minimum(-gate.astype(np.float64), 700)))
    out = gate.copy()
    with np.errstate(all="raise"):
        glu.gated(out, np.ones(11, np.float32), arrays.SILU, 0, 11)
    assert np.all(np.abs(out - exact) <= 8 * U * np.abs(exact) + 2e-36)  # 100 e^-87
    assert np.all(np.isfinite(out))


# ---- attention ----


def relative_error_of_exponentials(values: Floats) -> float:
    whole = len(values) // 16 * 16  # sixteen at a time
    values = values[:whole]
    scores = values.copy()
    total = attention.exponentials(scores, 0, len(scores), np.float32(0))
    exact = np.exp(values.astype(np.float64))
    assert abs(total - exact.sum()) <= len(values) * U * exact.sum()
    return float(np.max(np.abs(scores - exact) / exact))


def test_exponentials_are_accurate() -> None:
    rng = np.random.default_rng(3)
    assert relative_error_of_exponentials(np.linspace(-87, 0, 200_001).astype(np.float32)) < 3e-7
    assert relative_error_of_exponentials(rng.uniform(-87, 0, 200_003).astype(np.float32)) < 3e-7
    assert relative_error_of_exponentials(-np.exp(rng.uniform(-60, math.log(87), 50_001)).astype(np.float32)) < 3e-7
    # Next to the points where the power of two changes.
    steps = (-(np.arange(125) + 0.5) * math.log(2)).astype(np.float32)
    for _ in range(3):
        assert relative_error_of_exponentials(steps) < 3e-7
        steps = np.nextafter(steps, np.float32(-100))


def test_exponentials_of_zero_and_of_what_is_far_below() -> None:
    scores = np.array([5.0, 5.0 - 87.0, -200.0, -1e30, -np.inf] + 11 * [0.0], np.float32)
    attention.exponentials(scores, 0, 5, np.float32(5))
    scores = scores[:5]
    assert scores[0] == 1
    assert np.all(scores[1:] < 2e-38)
    assert np.all(scores[1:] >= 0)


def run_attend(
    queries: Floats, keys: Floats, values: Floats, lengths: list[int], kind: str = "f32", window: int = arrays.EVERYTHING
) -> Floats:
    """queries: (rows, dim); keys, values: (positions, dim). Through a cache whose unused places hold NaN: (rows, dim) float32."""
    dim, longest = queries.shape[1], lengths[-1]
    cache = new_cache(1, 1, dim, longest, kind)
    for part in cache:
        part.fill(np.nan if kind == "f32" else 0x7E00)
    naive_attention.store(cache, 0, 0, keys[:longest, None], values[:longest, None])
    return attend(queries, Cache(*(part[0, 0] for part in cache)), lengths, window)


@pytest.mark.parametrize(
    "lengths", [[1, 1, 1, 1], [1, 2, 3, 4], [13, 14, 15, 16], [15, 16, 17, 18], [60, 60, 64, 64], [62, 63, 64, 65], [199, 199, 200, 200]]
)
@pytest.mark.parametrize("dim", [2, 8, 20, 64, 80, 128])
def test_attend(lengths: list[int], dim: int) -> None:
    rng = np.random.default_rng(lengths[0] * dim)
    queries, keys, values = floats(rng, 4, dim), floats(rng, lengths[3], dim), floats(rng, lengths[3], dim)
    out = run_attend(queries, keys, values, lengths)
    for query, length, result in zip(queries, lengths, out, strict=True):
        expected = naive_attention.attend(query.reshape(1, 1, dim), keys[None, :length], values[None, :length], length - 1)[0]
        # A score is wrong by dim roundings of its terms at most, relatively so are the probabilities; the weighted sum adds `length` more.
        terms = np.abs(keys[:length]) @ np.abs(query) / np.sqrt(dim)
        bound = (2 * (dim + 4) * terms.max() + 2 * length + 8) * U * np.abs(values[:length]).max()
        assert np.max(np.abs(result - expected)) <= bound
        assert bound < 5e-3


def test_attend_over_float16_is_attend_over_the_rounded_numbers() -> None:
    rng = np.random.default_rng(5)
    queries, keys, values = floats(rng, 4, 24), floats(rng, 40, 24), floats(rng, 40, 24)
    rounded = [a.astype(np.float16).astype(np.float32) for a in (keys, values)]
    lengths = [37, 38, 39, 40]
    assert np.array_equal(run_attend(queries, keys, values, lengths, "f16"), run_attend(queries, *rounded, lengths))


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_the_cache_stores_as_the_twin_does(kind: str) -> None:
    rng = np.random.default_rng(6)
    keys, values = floats(rng, 19, 1, 20) * np.float32(1000), floats(rng, 19, 1, 20)
    cache, twin = new_cache(1, 1, 20, 19, kind), new_cache(1, 1, 20, 19, kind)
    naive_attention.store(twin, 0, 0, keys, values)
    for p in range(19):
        float_cache.store_key(cache.keys[0, 0], p, keys[p, 0], 20)
        float_cache.store_value(cache.values[0, 0], p, np.concatenate([[7], values[p, 0]]).astype(np.float32), 1, 20)
    assert all(np.array_equal(a, b) for a, b in zip(cache, twin, strict=True))


def test_attend_with_scores_far_apart() -> None:
    """The largest score is subtracted first: nothing overflows, and one position takes all."""
    dim = 16
    queries, keys = np.full((4, dim), 1000, np.float32), np.zeros((4, dim), np.float32)
    keys[:, 0] = [-1e4, 1e4, 0, 9e3]
    values = floats(np.random.default_rng(2), 4, dim)
    out = run_attend(queries, keys, values, [2, 3, 4, 4])
    assert np.allclose(out, values[1], rtol=1e-6, atol=1e-30)


# ---- head ----

KINDS = {
    "f32": arrays.HEAD_F32,
    "f16": arrays.HEAD_F16,
    "bf16": arrays.HEAD_BF16,
    "q8_0": arrays.HEAD_Q8_0,
    "q4_0": arrays.HEAD_Q4_0,
    "q6_K": arrays.HEAD_Q6_K,
    "q4_K": arrays.HEAD_Q4_K,
}


def head_bytes(rng: np.random.Generator, kind: int, rows: int, cols: int) -> NDArray[np.uint8]:
    if kind == arrays.HEAD_F32:
        return floats(rng, rows * cols).view(np.uint8)
    if kind == arrays.HEAD_F16:
        return floats(rng, rows * cols).astype("<f2").view(np.uint8)
    if kind == arrays.HEAD_BF16:
        return (floats(rng, rows * cols).view("<u4") >> 16).astype("<u2").view(np.uint8)
    weights, size = arrays.HEAD_BLOCKS[kind]
    blocks = rng.integers(0, 256, (rows * cols // weights, size), np.uint8)
    scales = rng.uniform(-0.1, 0.1, (len(blocks), 1)).astype("<f2").view(np.uint8)
    at = size - 2 if kind == arrays.HEAD_Q6_K else 0
    blocks[:, at : at + 2] = scales
    if kind == arrays.HEAD_Q4_K:
        blocks[:, 2:4] = rng.uniform(-0.3, 0.3, (len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(-1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("rows", "cols", "first", "last"), [(1, 32, 0, 1), (7, 96, 0, 7), (13, 256, 3, 11), (5, 2560, 1, 5), (9, 64, 4, 4)]
)
def test_head(name: str, rows: int, cols: int, first: int, last: int) -> None:
    kind, rng = KINDS[name], np.random.default_rng(cols)
    if cols % arrays.HEAD_BLOCKS[kind][0]:
        pytest.skip("rows are whole blocks")
    matrix = head_bytes(rng, kind, rows, cols)
    offset = 17
    data = np.concatenate([np.full(offset, 0xFF, np.uint8), matrix])  # 0xFF.. is NaN in both float types
    x, out, twin = floats(rng, cols), np.full(rows + 2, CANARY), np.zeros(rows, np.float32)
    dense.head_matvec(dense.HeadRows(data, offset, kind, cols), x, out, first, last)
    naive_dense.head_matvec(data, offset, kind, x, twin)
    weights = naive_dense.rows(data, offset, kind, 0, rows, cols).astype(np.float64)
    # 32 lanes of cols / 32 products, then 5 halvings; the packed kinds multiply by their scales once or twice more.
    bound = (cols / 32 + 8) * U * (np.abs(weights) @ np.abs(x.astype(np.float64)))
    assert np.all(np.abs(out[first:last] - (weights @ x)[first:last]) <= bound[first:last])
    assert np.all(np.abs(out[first:last] - twin[first:last]) <= (cols + 8) * U * (np.abs(weights) @ np.abs(x))[first:last])
    assert np.all(out[:first] == CANARY)
    assert np.all(out[last:] == CANARY)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (7, 96), (13, 256), (21, 2560), (9, 2304)])
def test_the_head_of_many_tokens_gives_the_bits_of_one(name: str, rows: int, cols: int) -> None:
    """Of any number of tokens, in any places, and no row or place but these."""
    kind, rng = KINDS[name], np.random.default_rng(cols)
    if cols % arrays.HEAD_BLOCKS[kind][0]:
        pytest.skip("rows are whole blocks")
    head = dense.HeadRows(np.concatenate([np.full(17, 0xFF, np.uint8), head_bytes(rng, kind, rows, cols)]), 17, kind, cols)
    x, places = np.full((20, cols + 16), np.nan, np.float32), rng.permutation(18)
    values, sums = (
        np.full(2 * arrays.HEAD_COLS, np.nan, np.float32),
        np.full((arrays.HEAD_ROWS * arrays.HEAD_TOKENS, 32), np.nan, np.float32),
    )
    for count in (2, 3, 4, 5, 8, 9, 16, 17):
        x[:count, :cols] = rng.standard_normal((count, cols))
        out, expected = np.full((18, rows + 2), CANARY), np.full((18, rows + 2), CANARY)
        first, last = min(1, rows - 1), rows
        dense_rows.head_rows(head, x, count, out, places, values, sums, first, last)
        for t in range(count):
            dense.head_matvec(head, x[t], expected[places[t]], first, last)
        assert np.array_equal(out.view(np.int32), expected.view(np.int32))


def all_finite_halves() -> NDArray[np.uint16]:
    """The 63,488 bit patterns of finite float16 values: subnormals and both zeros among them."""
    bits = np.arange(65536, dtype=np.uint16)
    return bits[np.isfinite(bits.view(np.float16))]


@pytest.mark.parametrize("native", [False, True])
def test_every_finite_float16_is_read_exactly(native: bool) -> None:
    """By the CPU's own conversion, and by the integer one of CPUs that have none."""
    if native and not CONVERTS & isa.cpu_features():
        pytest.skip("this CPU does not convert float16")
    load, store = simd_floats.half_precision_loader(native=native), simd_floats.store_f32

    @njit
    def widen(data: Any, out: Any) -> None:
        for k in range(0, len(out), 16):
            store(out, k, load(data, 2 * k))

    bits = all_finite_halves()
    assert len(bits) == 63488
    out = np.full(len(bits), np.nan, np.float32)
    widen(bits.view(np.uint8), out)
    assert np.array_equal(out.view(np.uint32), bits.view(np.float16).astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("native", [False, True])
def test_floats_are_rounded_to_the_nearest_float16(native: bool) -> None:
    """Half-way values to the even one; from 65,520 on infinity."""
    if native and not CONVERTS & isa.cpu_features():
        pytest.skip("this CPU does not convert float16")
    to_f16 = simd_floats.half_precision_bits(native=native)

    @njit
    def narrow(values: Any, out: Any) -> None:
        for k in range(len(values)):
            out[k] = to_f16(values[k])

    halves = all_finite_halves().view(np.float16).astype(np.float32)
    middle = (halves[:-1] + halves[1:]) / 2
    middle = middle[np.isfinite(middle)]
    neighbours = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    ends = np.array([65504, 65519.996, 65520, 65536, 1e38, np.inf, 2**-24, 2**-25, 2**-26, 1e-45], np.float32)
    values = np.concatenate([halves, middle, *neighbours, bits[np.isfinite(bits)], ends, -ends])
    out = np.zeros(len(values), np.uint16)
    narrow(values, out)
    with np.errstate(over="ignore"):
        assert np.array_equal(out, values.astype(np.float16).view(np.uint16))


def test_the_head_reads_every_finite_float16() -> None:
    """Through the kernel of this process: each value meets a single 1 in x."""
    values = all_finite_halves().view(np.float16)
    for column in (0, 15, 16, 31):
        x = np.zeros(32, np.float32)
        x[column] = 1
        matrix = np.zeros((len(values), 32), np.float16)
        matrix[:, column] = values
        out = np.full(len(values), np.nan, np.float32)
        dense.head_matvec(dense.HeadRows(matrix.view(np.uint8).reshape(-1), 0, arrays.HEAD_F16, 32), x, out, 0, len(values))
        assert np.array_equal(out, values.astype(np.float32))


def test_q8_0_with_subnormal_and_negative_scales() -> None:
    for scale in (2.0**-24, -0.5, 2.0**-14, 0.0, 65504.0):
        block = np.concatenate([np.array([scale], "<f2").view(np.uint8), np.full(32, 0x80, np.uint8)])  # every weight -128
        out = np.zeros(1, np.float32)
        dense.head_matvec(dense.HeadRows(block, 0, arrays.HEAD_Q8_0, 32), np.ones(32, np.float32), out, 0, 1)
        assert out[0] == np.float32(scale) * -4096
