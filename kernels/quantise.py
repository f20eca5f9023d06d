"""Activations, float32 -> int8 with one factor a token (facts: BitNet b1.58, "absmax").

factor = 127 / max(1e-5, max|x|);  code = clip(round_half_even(x * factor), -128, 127). Twin: naive/quantise.py.

Codes are written in kernel order: a register holds 2-bit codes of WIDTH / 32 blocks of 128 weights, so 32-value groups of as many
blocks lie side by side. With 32-byte registers that is the natural order.
"""

import numpy as np

from .jit import kernel
from .simd import selected

_BLOCKS = selected.WIDTH // 32  # blocks of 128 weights in one register


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


@kernel
def quantise_row(x, cols, codes, padded_cols):  # type: ignore[no-untyped-def]
    """x: (>= cols,) float32 -> codes: (padded_cols,) int8, zero past cols. Returns (factor float32, sum of codes int32).

    Not a fast kernel: where x * (127 / largest) is rounded decides the code, so it must not be computed in another order.
    """
    factor = np.float32(127.0) / largest_magnitude(x, cols, np.float32(1e-5))
    total = np.int32(0)
    group = 128 * _BLOCKS
    for start in range(0, padded_cols, 32):
        place = start // group * group + start % group // 128 * 32 + start % 128 // 32 * (32 * _BLOCKS)
        if start >= cols:
            for j in range(32):
                codes[place + j] = 0
        elif start + 32 <= cols:
            for j in range(32):
                code = np.int32(min(max(np.rint(x[start + j] * factor), np.float32(-128.0)), np.float32(127.0)))
                codes[place + j] = code
                total += code
        else:
            for j in range(32):
                code = np.int32(0)
                if start + j < cols:
                    code = np.int32(min(max(np.rint(x[start + j] * factor), np.float32(-128.0)), np.float32(127.0)))
                codes[place + j] = code
                total += code
    return factor, total
