"""Twin of kernels/inputs.py."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def keep_largest(x: Floats, count: int) -> Floats:
    """(tokens, cols) float32 -> the same, zero where |x| is less than the count-th largest of its token. Ties are all kept."""
    sizes = np.abs(x).view(np.int32)  # bits of floats from zero up are ordered as integers, NaN above all
    place = x.shape[-1] - count
    least = np.partition(sizes, place, -1)[:, place, None]
    return np.where(sizes >= least, x, np.float32(0))


def hadamard(x: Floats) -> Floats:
    """(tokens, cols) float32, blocks of n values times the n x n Hadamard matrix / sqrt(n); n: largest power of two in cols."""
    n = x.shape[-1] & -x.shape[-1]
    step = 1
    y = x
    while step < n:
        pairs = y.reshape(-1, 2, step)
        y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
        step *= 2
    return y.reshape(x.shape) * np.float32(1 / np.sqrt(n))
