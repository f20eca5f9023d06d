"""RMSNorm: y = weight * (x / sqrt(mean(x²) + eps)). Twin: naive/norm.py.

The sum of squares is taken in float64, in which a float32 has an exact square: 16 sums, of every 16th value each, which are then added by
halving (simd/floats.py), and last what is left of x after whole 16s, in its order. So its bits are the same on every CPU. int8 codes
follow, and one rounding that goes the other way there is a thousand times larger than a float32 rounding.
"""

import numpy as np

from .jit import inlined, kernel
from .simd import doubles, floats

load, wide, zero, add, mul, total = floats.load_f32, doubles.wide, doubles.zero_f64, doubles.add_f64, doubles.mul_f64, doubles.total_f64


@inlined
def _sum_of_squares(x, size):
    lanes, whole = zero(), size // 16 * 16
    for i in range(0, whole, 16):
        v = wide(load(x, i))
        lanes = add(lanes, mul(v, v))
    squares = total(lanes)
    for i in range(whole, size):
        squares += np.float64(x[i]) * np.float64(x[i])
    return squares


@kernel
def rms_norm(x, weights, offset, size, eps, out):
    """x: (>= size,) float32; weights: flat float32, the norm's begin at `offset`; out: (>= size,) float32, may be x."""
    inverse = np.float32(1.0) / np.sqrt(np.float32(_sum_of_squares(x, size) / size) + np.float32(eps))
    part = weights[offset : offset + size]
    for i in range(size):
        out[i] = part[i] * (x[i] * inverse)
