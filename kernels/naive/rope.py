"""Twin of kernels/rope.py, and the tables of angles that both use."""

import numpy as np
from numpy.typing import NDArray


def angles(
    context: int, head_dim: int, theta: float, factors: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of position * theta^(-2i / head_dim) / factors[i], each (context, head_dim / 2) float32.

    factors: (head_dim / 2,) float32, llama.cpp's `rope_freqs`, by which Llama 3.1 and later stretch slow rotations; None: all 1.

    Frequency and angle are rounded to float32 as the training code rounds them; the angle's rounding grows with the position, so
    computing it more exactly would move away from the model.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / np.power(float(theta), exponent.astype(np.float64)).astype(np.float32)
    if factors is not None:
        frequency = frequency / factors
    angle = np.arange(context, dtype=np.float32)[:, None] * frequency
    return np.cos(angle.astype(np.float64)).astype(np.float32), np.sin(angle.astype(np.float64)).astype(np.float32)


def rotate(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """x: (tokens, heads, head_dim); cos, sin: (tokens, head_dim / 2). Pairs are (i, i + head_dim / 2)."""
    low, high = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], -1)


def rotate_pairs(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `rotate`, of pairs (2 i, 2 i + 1), which come out as (i, i + head_dim / 2)."""
    return rotate(np.concatenate([x[..., ::2], x[..., 1::2]], -1), cos, sin)
