"""The gated unit of the feed-forward block: act(gate) * up, in float32 (ReLU² overflows float16). Twin: naive/glu.py."""

import numpy as np

from .arrays import RELU2
from .exponential import exp
from .jit import kernel
from .simd import floats

load, store, splat, select = floats.load_f32, floats.store_f32, floats.splat_f32, floats.where_negative_f32
add, mul, divide, negative_size = floats.add_f32, floats.mul_f32, floats.div_f32, floats.negative_size_f32


@kernel
def gated(gate, up, activation, first, last):  # type: ignore[no-untyped-def]
    """gate[i] = act(gate[i]) * up[i] for first <= i < last, in place. activation: RELU2 or SILU (arrays.py).

    SiLU is gate * sigmoid(gate), with e = exp(-|gate|), which cannot overflow: 1 / (1 + e) above zero and e / (1 + e) below.
    """
    if activation == RELU2:
        for i in range(first, last):
            positive = max(gate[i], np.float32(0.0))
            gate[i] = positive * positive * up[i]
        return
    one = splat(np.float32(1.0))
    whole = first + (last - first) // 16 * 16
    for i in range(first, whole, 16):
        g = load(gate, i)
        e = exp(negative_size(g))
        store(gate, i, mul(divide(mul(g, select(g, e, one)), add(one, e)), load(up, i)))
    for i in range(whole, last):
        gate[i] = gate[i] / (np.float32(1.0) + np.exp(-gate[i])) * up[i]
