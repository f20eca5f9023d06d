"""Twin of kernels/glu.py."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import RELU2


def gated(gate: NDArray[np.float32], up: NDArray[np.float32], activation: int) -> NDArray[np.float32]:
    """act(gate) * up, any shape. activation: RELU2 (max(g, 0)²) or SILU (g / (1 + exp(-g)))."""
    if activation == RELU2:
        return np.square(np.maximum(gate, np.float32(0))) * up
    with np.errstate(over="ignore"):  # exp of a large -g is infinity, and g / infinity is the right limit
        return (gate / (np.float32(1) + np.exp(-gate)) * up).astype(np.float32, copy=False)
