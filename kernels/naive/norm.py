"""Twin of kernels/norm.py."""

import numpy as np
from numpy.typing import NDArray


def rms_norm(x: NDArray[np.float32], weight: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    """(..., size) float32 -> weight * x / sqrt(mean(x²) + eps); the mean in float64, rounded once."""
    mean = np.square(x, dtype=np.float64).mean(-1, keepdims=True).astype(np.float32)
    inverse = np.float32(1) / np.sqrt(mean + np.float32(eps))
    y: NDArray[np.float32] = weight * (x * inverse)
    return y
