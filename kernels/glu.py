"""The gated unit of the feed-forward block: act(gate) * up, in float32 (ReLU² overflows float16). Twin: naive/glu.py."""

import numpy as np

from .arrays import RELU2
from .jit import kernel


@kernel
def gated(gate, up, activation, first, last):  # type: ignore[no-untyped-def]
    """gate[i] = act(gate[i]) * up[i] for first <= i < last, in place. activation: RELU2 or SILU (arrays.py)."""
    if activation == RELU2:
        for i in range(first, last):
            positive = max(gate[i], np.float32(0.0))
            gate[i] = positive * positive * up[i]
    else:
        for i in range(first, last):
            gate[i] = gate[i] / (np.float32(1.0) + np.exp(-gate[i])) * up[i]
