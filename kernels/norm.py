"""RMSNorm: y = weight * (x / sqrt(mean(x²) + eps)). Twin: naive/norm.py.

The sum of squares is taken in float64, so that its order does not show in the float32 result: int8 codes follow, and one rounding
that goes the other way there is a thousand times larger than a float32 rounding.
"""

import numpy as np

from .jit import fast_kernel


@fast_kernel
def rms_norm(x, weights, offset, size, eps, out):  # type: ignore[no-untyped-def]
    """x: (>= size,) float32; weights: flat float32, the norm's begin at `offset`; out: (>= size,) float32, may be x."""
    total = 0.0
    for i in range(size):
        total += np.float64(x[i]) * np.float64(x[i])
    inverse = np.float32(1.0) / np.sqrt(np.float32(total / size) + np.float32(eps))
    for i in range(size):
        out[i] = weights[offset + i] * (x[i] * inverse)
