"""The head's weights as planes of 4, 2 and 2 bits, so that most rows need few bytes to be ruled out. Twin: naive/head_planes.py.

Row r is s (u - 127.5) with 8-bit codes u, s = max|w| / 127.5, plus what rounding left over. Cut after 4, 6 or 8 bits, codes stand for the
middle of what their lower bits could be:

    4 bits   s (16 u4 - 120)                     u4 = u >> 4
    6 bits   that + s (4 u2 - 6)                 u2 = u >> 2 & 3
    8 bits   that + s (u1 - 1.5)                 u1 = u & 3

`errors` keeps how far the row is from each of them, as a length: by Cauchy and Schwarz |(w - w4) . x| <= |w - w4| |x|, from which
head_search.py makes a proof. Lengths are rounded up by more than float32 sums can be off.

Bytes of a row lie in the order in which activations do (quantise.py): the two 2-bit planes as I2_S rows, in which fields 0 .. 3 of a
register are WIDTH weights each; the 4-bit plane as two registers for one of those, lower and upper half of the first for fields 0 and 1,
of the second for 2 and 3.
"""

import numpy as np

from .arrays import HEAD_BF16, HEAD_F16, HEAD_F32, HEAD_Q4_K, HEAD_Q6_K
from .dense import (
    load_bf16,
    load_f32,
    load_i8,
    mul,
    one_f16,
    row_bytes,
    splat,
    values_q4_k,
    values_q6_k,
)
from .jit import entry, fast_kernel, kernel
from .quantise import largest_magnitude
from .simd import floats, selected

WIDTH = selected.WIDTH
_BLOCKS = WIDTH // 32
load_f16, store_f32 = selected.load_f16, floats.store_f32


@kernel
def row_values(data, at, kind, cols, out):  # type: ignore[no-untyped-def]
    """The row at byte `at`, of any kind but HEAD_Q4_0 -> out: (>= cols,) float32, exactly as head_matvec multiplies it."""
    if kind == HEAD_Q6_K:
        values_q6_k(data, at, cols, out)
        return
    if kind == HEAD_Q4_K:
        values_q4_k(data, at, cols, out)
        return
    for k in range(0, cols, 32):
        if kind == HEAD_F16:
            store_f32(out, k, load_f16(data, at + k * 2))
            store_f32(out, k + 16, load_f16(data, at + k * 2 + 32))
        elif kind == HEAD_F32:
            store_f32(out, k, load_f32(data, at + k * 4))
            store_f32(out, k + 16, load_f32(data, at + k * 4 + 64))
        elif kind == HEAD_BF16:
            store_f32(out, k, load_bf16(data, at + k * 2))
            store_f32(out, k + 16, load_bf16(data, at + k * 2 + 32))
        else:
            block = at + k // 32 * 34
            scale = splat(one_f16(data, block))
            store_f32(out, k, mul(load_i8(data, block + 2), scale))
            store_f32(out, k + 16, mul(load_i8(data, block + 18), scale))


@fast_kernel
def _encode(values, cols, scale, inverse, codes):  # type: ignore[no-untyped-def]
    """values -> codes: (>= cols,) uint8; returns the squared lengths of what 4, 6 and 8 bits leave over."""
    e4 = e6 = e8 = np.float32(0.0)
    for i in range(cols):
        u = np.int32(np.rint(values[i] * inverse + np.float32(127.5)))
        u = min(max(u, np.int32(0)), np.int32(255))
        codes[i] = u
        d4 = values[i] - scale * np.float32((u >> np.int32(4)) * np.int32(16) - np.int32(120))
        d6 = values[i] - scale * np.float32((u >> np.int32(2)) * np.int32(4) - np.int32(126))
        d8 = values[i] - scale * (np.float32(u) - np.float32(127.5))
        e4 += d4 * d4
        e6 += d6 * d6
        e8 += d8 * d8
    return e4, e6, e8


@kernel
def _cut(codes, planes, r, length):  # type: ignore[no-untyped-def]
    """codes: (length,) uint8 in natural order -> row r of the planes."""
    for start in range(0, length, 128 * _BLOCKS):
        for block in range(_BLOCKS):
            c, place = start + 128 * block, r * (length // 4) + start // 4 + 32 * block
            high = r * (length // 2) + start // 2 + 32 * block
            for j in range(32):
                c0, c1, c2, c3 = codes[c + j], codes[c + 32 + j], codes[c + 64 + j], codes[c + 96 + j]
                planes.high[high + j] = c0 >> 4 | c1 & 240
                planes.high[high + WIDTH + j] = c2 >> 4 | c3 & 240
                planes.middle[place + j] = (c0 & 12) << 4 | (c1 & 12) << 2 | c2 & 12 | (c3 & 12) >> 2
                planes.low[place + j] = (c0 & 3) << 6 | (c1 & 3) << 4 | (c2 & 3) << 2 | c3 & 3


@kernel
def build(data, offset, kind, cols, planes, values, codes, first, last):  # type: ignore[no-untyped-def]
    """Rows first <= r < last of the planes, from the matrix at byte `offset`, of which they are the rows planes.ids.

    values: (>= cols,) float32, codes: (padded cols,) uint8, scratch. A row that is not finite gets infinite errors: it is never ruled out.
    """
    stride, length = row_bytes(kind, cols), (cols + 4 * WIDTH - 1) // (4 * WIDTH) * (4 * WIDTH)
    codes[:] = 0
    root = np.sqrt(np.float64(cols))
    for r in range(first, last):
        row_values(data, offset + planes.ids[r] * stride, kind, cols, values)
        largest = largest_magnitude(values, cols, np.float32(1e-30))
        if not largest < np.float32(1e30):
            planes.scales[r] = 0.0
            planes.errors[r, :] = np.inf
            continue
        scale = largest / np.float32(127.5)
        left = _encode(values, cols, scale, np.float32(127.5) / largest, codes)
        _cut(codes, planes, r, length)
        planes.scales[r] = scale
        # Float32 sums of squares are off by at most cols * 2^-24 of themselves (0.1 % at 16,384), a rest by 2^-22 of max|w|, 4e-5 scale.
        # Squares of a row of nothing, or nearly, are too small for float32: no rest is over 8 steps.
        for i in range(3):
            length_left = np.sqrt(np.float64(left[i])) * 1.002 + scale * root * 1e-4
            planes.errors[r, i] = length_left if largest > np.float32(1e-12) else scale * root * 8.01


@entry
def build_rows(frame, offset, kind, cols, first, last):  # type: ignore[no-untyped-def]
    """As build, over an arrays.CutFrame. Returns 0."""
    build(frame.data, offset, kind, cols, frame.planes, frame.values, frame.codes, first, last)
    return 0
