"""The head's weights as planes of 6 and 2 bits, so that most rows need few bytes to be ruled out. Twin: naive/head_planes.py.

Row r is s (u - 127.5) with 8-bit codes u, s = max|w| / 127.5, plus what rounding left over. Cut after 4, 6 or 8 bits, codes stand for the
middle of what their lower bits could be:

    4 bits   s (16 u4 - 120)                     u4 = u >> 4
    6 bits   that + s (4 u2 - 6)                 u2 = u >> 2 & 3
    8 bits   that + s (u1 - 1.5)                 u1 = u & 3

`errors` keeps how far the row is from 6 and 8 bits of it, and how long it is itself: by Cauchy and Schwarz |(w - w6) . x| <= |w - w6| |x|,
from which head_search.py makes a proof. Lengths are rounded up by more than float32 sums can be off.

Bytes of a row lie in the order in which activations do (quantise.py): the plane of the last two bits as I2_S rows, in which fields
0 .. 3 of a register are WIDTH weights each. That of the first six has three registers for one of those: bits 2 and 3 of the codes, as
such a row; then the upper four, lower and upper half of the first for fields 0 and 1, of the second for 2 and 3. They are read together,
so they lie together: four streams are read quicker than eight (docs/log.md#panel-prefetch).
"""

import numpy as np

from .dense import row_bytes
from .dense_rows import row_values
from .jit import entry, inlined, kernel
from .quantise import kernel_length, largest_magnitude
from .simd import floats, selected, vectors

WIDTH = selected.WIDTH
_BLOCKS = WIDTH // 32
load, zero, splat, add, sub, mul = floats.load_f32, floats.zero_f32, floats.splat_f32, floats.add_f32, floats.sub_f32, floats.mul_f32
total, nearest, to_f32, store_bytes = floats.total_f32, floats.nearest_i32, floats.to_f32, floats.store_low_bytes
within_byte, upper_six = floats.clamped_f32(0.0, 255.0), vectors.masked(floats.I32x16, ~3)


@inlined
def _encode(values, cols, scale, inverse, codes):
    """values -> codes: (>= cols,) uint8; returns the squared lengths of what 6 and 8 bits leave over, and of the values. cols: 16s."""
    e6, e8, size, middle = zero(), zero(), zero(), splat(np.float32(127.5))
    for i in range(0, cols, 16):
        v = load(values, i)
        u = nearest(within_byte(add(mul(v, splat(inverse)), middle)))
        store_bytes(codes, i, u)
        d6 = sub(v, mul(splat(scale), sub(to_f32(upper_six(u)), splat(np.float32(126.0)))))
        d8 = sub(v, mul(splat(scale), sub(to_f32(u), middle)))
        e6, e8, size = add(e6, mul(d6, d6)), add(e8, mul(d8, d8)), add(size, mul(v, v))
    return total(e6), total(e8), total(size)


@kernel
def _cut(codes, planes, r, length):
    """codes: (length,) uint8 in natural order -> row r of the planes."""
    for start in range(0, length, 128 * _BLOCKS):
        for block in range(_BLOCKS):
            c, place = start + 128 * block, r * (length // 4) + start // 4 + 32 * block
            six = r * (length // 4 * 3) + start // 4 * 3 + 32 * block
            for j in range(32):
                c0, c1, c2, c3 = codes[c + j], codes[c + 32 + j], codes[c + 64 + j], codes[c + 96 + j]
                planes.six[six + j] = (c0 & 12) << 4 | (c1 & 12) << 2 | c2 & 12 | (c3 & 12) >> 2
                planes.six[six + WIDTH + j] = c0 >> 4 | c1 & 240
                planes.six[six + 2 * WIDTH + j] = c2 >> 4 | c3 & 240
                planes.low[place + j] = (c0 & 3) << 6 | (c1 & 3) << 4 | (c2 & 3) << 2 | c3 & 3


@kernel
def build(data, offset, kind, cols, planes, values, codes, first, last):
    """Rows first <= r < last of the planes, from the matrix at byte `offset`, of which they are the rows planes.ids.

    values: (>= cols,) float32, codes: (padded cols,) uint8, scratch. A row that is not finite gets infinite errors: it is never ruled out.
    """
    stride, length = row_bytes(kind, cols), kernel_length(cols)
    codes[:] = 0
    root = np.sqrt(np.float64(cols))
    for r in range(first, last):
        row_values(data, offset + planes.ids[r] * stride, kind, cols, stride, values)
        largest = largest_magnitude(values, cols, np.float32(1e-30))
        if not largest < np.float32(1e30):
            planes.scales[r] = 0.0
            planes.errors[:, r] = np.inf
            continue
        scale = largest / np.float32(127.5)
        left = _encode(values, cols, scale, np.float32(127.5) / largest, codes)
        _cut(codes, planes, r, length)
        planes.scales[r] = scale
        # Float32 sums of squares are off by at most cols * 2^-24 of themselves (0.1 % at 16,384), a rest by 2^-22 of max|w|, 4e-5 scale.
        # Squares of a row of nothing, or nearly, are too small for float32: no rest is over 8 steps, no value over 127.5.
        for i in range(3):
            length_left = np.sqrt(np.float64(left[i])) * 1.002 + scale * root * 1e-4
            planes.errors[i, r] = length_left if largest > np.float32(1e-12) else scale * root * (128 if i == 2 else 8.01)


@entry
def build_rows(frame, offset, kind, cols, first, last):
    """As build, over an arrays.CutFrame. Returns 0."""
    build(frame.data, offset, kind, cols, frame.planes, frame.values, frame.codes, first, last)
    return 0
