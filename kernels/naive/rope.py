"""Twin of kernels/rope.py."""

import numpy as np
from numpy.typing import NDArray


def rotate(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """x: (tokens, heads, head_dim); cos, sin: (tokens, head_dim / 2). Pairs are (i, i + head_dim / 2)."""
    low, high = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], -1)


def rotate_pairs(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `rotate`, of pairs (2 i, 2 i + 1), which come out as (i, i + head_dim / 2)."""
    return rotate(np.concatenate([x[..., ::2], x[..., 1::2]], -1), cos, sin)
