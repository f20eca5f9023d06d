"""Twin of kernels/glu.py."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import GELU, RELU2


def gated(gate: NDArray[np.float32], up: NDArray[np.float32], activation: int) -> NDArray[np.float32]:
    """act(gate) * up, any shape. activation: RELU2 (max(g, 0)²), SILU (g / (1 + exp(-g))) or GELU (with tanh)."""
    if activation == RELU2:
        return np.square(np.maximum(gate, np.float32(0))) * up
    if activation == GELU:
        x = gate.astype(np.float64)
        with np.errstate(over="ignore"):  # x/2 (1 + tanh(u)) = x / (1 + exp(-2 u)), which keeps its digits below zero
            y: NDArray[np.float64] = x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) * up
        return y.astype(np.float32)
    with np.errstate(over="ignore"):  # exp of a large -g is infinity, and g / infinity is the right limit
        return (gate / (np.float32(1) + np.exp(-gate)) * up).astype(np.float32, copy=False)
