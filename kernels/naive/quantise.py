"""Twin of kernels/quantise.py."""

import numpy as np
from numpy.typing import NDArray


def quantise(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(tokens, cols) float32 -> (tokens, cols) int8 in natural order, and the factors 127 / max(1e-5, max|x|), (tokens,) float32."""
    factors = np.float32(127) / np.maximum(np.abs(x).max(-1), np.float32(1e-5))
    return np.clip(np.rint(x * factors[:, None]), -128, 127).astype(np.int8), factors
