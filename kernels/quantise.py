"""Activations, float32 -> int8 with one factor a token (facts: BitNet b1.58, "absmax").

factor = 127 / max(1e-5, max|x|);  code = clip(round_half_even(x * factor), -128, 127). Twin: naive/quantise.py.

Codes are written in kernel order: a register holds 2-bit codes of WIDTH / 32 blocks of 128 weights, so 32-value groups of as many
blocks lie side by side. With 32-byte registers that is the natural order.
"""

import numpy as np

from .jit import fast_kernel, kernel
from .simd import selected

_BLOCKS = selected.WIDTH // 32  # blocks of 128 weights in one register


@fast_kernel
def _largest(x, cols):  # type: ignore[no-untyped-def]
    largest = np.float32(1e-5)
    for i in range(cols):
        largest = max(largest, abs(x[i]))
    return largest


@kernel
def quantise_row(x, cols, codes, padded_cols):  # type: ignore[no-untyped-def]
    """x: (>= cols,) float32 -> codes: (padded_cols,) int8, zero past cols. Returns (factor float32, sum of codes int32).

    Not a fast kernel: where x * (127 / largest) is rounded decides the code, so it must not be computed in another order.
    """
    factor = np.float32(127.0) / _largest(x, cols)
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
