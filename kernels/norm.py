"""RMSNorm: y = weight * (x / sqrt(mean(x²) + eps)). Twin: naive/norm.py.

The sum of squares is taken in float64, so that its order does not show in the float32 result: int8 codes follow, and one rounding
that goes the other way there is a thousand times larger than a float32 rounding.
"""

import numpy as np

from .jit import fast_kernel, kernel


@fast_kernel
def _sum_of_squares(x, size):
    total = 0.0
    for i in range(size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def rms_norm(x, weights, offset, size, eps, out):
    """x: (>= size,) float32; weights: flat float32, the norm's begin at `offset`; out: (>= size,) float32, may be x.

    Not a fast kernel: LLVM makes a vector and a scalar version of the last loop, takes one by where the arrays lie in memory, and would
    multiply in another order in each. So the same model would give other tokens from run to run.
    """
    inverse = np.float32(1.0) / np.sqrt(np.float32(_sum_of_squares(x, size) / size) + np.float32(eps))
    part = weights[offset : offset + size]
    for i in range(size):
        out[i] = part[i] * (x[i] * inverse)


@kernel
def add_rms_norm(x, weights, offset, size, eps, out):
    """As `rms_norm`, but added to out."""
    inverse = np.float32(1.0) / np.sqrt(np.float32(_sum_of_squares(x, size) / size) + np.float32(eps))
    part = weights[offset : offset + size]
    for i in range(size):
        out[i] += part[i] * (x[i] * inverse)
