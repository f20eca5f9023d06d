"""Activations, float32 -> int8 with one factor a token (facts: BitNet b1.58, "absmax").

factor = 127 / max(1e-5, max|x|);  code = clip(round_half_even(x * factor), -128, 127). Twin: naive/quantise.py. Four bits: inputs.py.

Codes are written in kernel order: a register holds 2-bit codes of WIDTH / 32 blocks of 128 weights, so 32-value groups of as many
blocks lie side by side. With 32-byte registers that is the natural order.
"""

import numpy as np

from .jit import inlined, kernel
from .simd import floats, selected

load, mul, splat, nearest, store = floats.load_f32, floats.mul_f32, floats.splat_f32, floats.nearest_i32, floats.store_low_bytes
zero, add, sum_of = floats.zero_i32, floats.add_i32, floats.total_i32
_BLOCKS = selected.WIDTH // 32  # blocks of 128 weights in one register


@kernel
def largest_magnitude(x, cols, least):
    """max(least, max|x|); NaN where x holds one. x: (>= cols,) float32; least: float32 > 0.

    Bits of floats above zero are ordered as integers, NaN above all: so no NaN gets lost, and LLVM makes vectors of the loop.
    """
    bits = x.view(np.int32)
    largest = np.float32(least).view(np.int32)
    for i in range(cols):
        largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    return np.int32(largest).view(np.float32)


@kernel
def kernel_length(cols):
    """Codes of a row of `cols` in kernel order: of whole groups of four registers (arrays.padded)."""
    return (cols + 4 * selected.WIDTH - 1) // (4 * selected.WIDTH) * (4 * selected.WIDTH)


@inlined
def place_of(start):
    """Where the 16 codes from `start` on, a multiple of 16, lie in kernel order."""
    group = 128 * _BLOCKS
    return start // group * group + start % group // 128 * 32 + start % 128 // 32 * (32 * _BLOCKS) + start % 32


@kernel
def quantise_row(x, cols, codes, padded_cols):
    """x: (>= cols,) float32 -> codes: (padded_cols,) int8, zero past cols. Returns (factor float32, sum of codes int32).

    No code needs clipping: |x| * fl(127 / max|x|) is at most 127 (1 + 2^-23), which is rounded to 127. The product is rounded to float32
    before it is rounded to an integer: that decides the code.
    """
    factor = np.float32(127.0) / largest_magnitude(x, cols, np.float32(1e-5))
    factors, sums, total = splat(factor), zero(), np.int32(0)
    for start in range(0, padded_cols, 32):
        place = place_of(start)
        if start + 32 <= cols:
            a, b = nearest(mul(load(x, start), factors)), nearest(mul(load(x, start + 16), factors))
            store(codes, place, a)
            store(codes, place + 16, b)
            sums = add(sums, add(a, b))
        else:
            for j in range(32):
                code = np.int32(np.rint(x[start + j] * factor)) if start + j < cols else np.int32(0)
                codes[place + j] = code
                total = np.int32(total + code)
    return factor, np.int32(total + sum_of(sums))
