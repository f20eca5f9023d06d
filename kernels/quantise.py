"""Activations, float32 -> integer codes with one factor a token. Twin: naive/quantise.py.

    INT8   factor = 127 / max|x|, code = round(x * factor)                          BitNet b1.58, "absmax"
    INT4   factor = sqrt(7) / mean|x|, code = round(x * factor) within -8 .. 7      BitNet a4.8, arXiv 2411.04965, equation 7
    FP4    factor = 12 / max|x|, code = twice the nearest E2M1 value                the same, section 2.3

max|x| and mean|x| are taken as 1e-5 at least; of two integers equally near, the even one; of two E2M1 values 0, .5, 1, 1.5, 2, 3, 4, 6
the one whose mantissa bit is 0.

Codes are written in kernel order: a register holds 2-bit codes of WIDTH / 32 blocks of 128 weights, so 32-value groups of as many
blocks lie side by side. With 32-byte registers that is the natural order.
"""

import numpy as np

from .arrays import FP4, INT4
from .jit import inlined, kernel
from .simd import floats, selected

load, mul, splat, nearest, store = floats.load_f32, floats.mul_f32, floats.splat_f32, floats.nearest_i32, floats.store_low_bytes
zero, add, sum_of = floats.zero_i32, floats.add_i32, floats.total_i32
negative_size, select, within_int4 = floats.negative_size_f32, floats.where_negative_f32, floats.clamped_f32(-8.0, 7.0)
add_f32, nearest_f32 = floats.add_f32, floats.nearest_f32
_BLOCKS = selected.WIDTH // 32  # blocks of 128 weights in one register
_LEAST, _ROOT7 = np.float32(1e-5), np.float32(np.sqrt(7))


@kernel
def largest_magnitude(x, cols, least):  # type: ignore[no-untyped-def]
    """max(least, max|x|); NaN where x holds one. x: (>= cols,) float32; least: float32 > 0.

    Bits of floats above zero are ordered as integers, NaN above all: so no NaN gets lost, and LLVM makes vectors of the loop.
    """
    bits = x.view(np.int32)
    largest = np.float32(least).view(np.int32)
    for i in range(cols):
        largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    return np.int32(largest).view(np.float32)


@inlined
def _mean_magnitude(x, cols):  # type: ignore[no-untyped-def]
    """mean|x|, summed in float64 in the twin's order, rounded once."""
    whole, lanes = cols // 16 * 16, floats.zero_f64()
    for start in range(0, whole, 16):
        lanes = floats.add_sizes_f64(lanes, load(x, start))
    total = floats.total_f64(lanes)
    for i in range(whole, cols):
        total += np.float64(abs(x[i]))
    return np.float32(total / cols)


@inlined
def _rounded(v, kind):  # type: ignore[no-untyped-def]
    """16 scaled activations -> codes.

    INT8 and FP4 need no clipping: |x| * fl(127 / max|x|) is at most 127 (1 + 2^-23), which is rounded to 127.
    """
    if kind == FP4:
        size = negative_size(v)  # -|v|
        twos = mul(nearest_f32(mul(v, splat(np.float32(0.5)))), splat(np.float32(2.0)))
        fours = mul(nearest_f32(mul(v, splat(np.float32(0.25)))), splat(np.float32(4.0)))
        v = select(add_f32(size, splat(np.float32(8.0))), fours, select(add_f32(size, splat(np.float32(4.0))), twos, v))
    elif kind == INT4:
        v = within_int4(v)
    return nearest(v)


@inlined
def _one_rounded(v, kind):  # type: ignore[no-untyped-def]
    """As `_rounded`, for one."""
    step = np.float32(1.0)
    if kind == FP4:
        step = np.float32(1.0 if abs(v) < 4 else 2.0 if abs(v) < 8 else 4.0)
    elif kind == INT4:
        v = min(max(v, np.float32(-8.0)), np.float32(7.0))
    return np.int32(np.rint(v / step) * step)


@kernel
def quantise_row(x, cols, kind, codes, padded_cols):  # type: ignore[no-untyped-def]
    """x: (>= cols,) float32 -> codes: (padded_cols,) int8, zero past cols. Returns (factor float32, sum of codes int32).

    kind: INT8, INT4 or FP4 (arrays.py). The product is rounded to float32 before it is rounded to an integer: that decides the code.
    """
    if kind == INT4:
        mean = _mean_magnitude(x, cols)
        factor = _ROOT7 / (_LEAST if mean < _LEAST else mean)  # NaN stays
    else:
        factor = np.float32(12.0 if kind == FP4 else 127.0) / largest_magnitude(x, cols, _LEAST)
    factors, sums, total = splat(factor), zero(), np.int32(0)
    group = 128 * _BLOCKS
    for start in range(0, padded_cols, 32):
        place = start // group * group + start % group // 128 * 32 + start % 128 // 32 * (32 * _BLOCKS)
        if start + 32 <= cols:
            a, b = _rounded(mul(load(x, start), factors), kind), _rounded(mul(load(x, start + 16), factors), kind)
            store(codes, place, a)
            store(codes, place + 16, b)
            sums = add(sums, add(a, b))
        else:
            for j in range(32):
                code = _one_rounded(x[start + j] * factor, kind) if start + j < cols else np.int32(0)
                codes[place + j] = code
                total = np.int32(total + code)
    return factor, np.int32(total + sum_of(sums))
