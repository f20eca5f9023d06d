"""The gated unit of the feed-forward block: act(gate) * up, in float32 (ReLU² overflows float16). Twin: naive/glu.py.

GELU is the approximation with tanh that models are trained with (Hendrycks and Gimpel, arXiv 1606.08415): x/2 (1 + tanh(u)) with
u = sqrt(2 / pi) (x + 0.044715 x³), which is x * sigmoid(2 u).
"""

import numpy as np

from .arrays import GELU, RELU2
from .exponential import exp
from .jit import inlined, kernel
from .simd import floats

load, store, splat, select = floats.load_f32, floats.store_f32, floats.splat_f32, floats.where_negative_f32
add, mul, divide, negative_size = floats.add_f32, floats.mul_f32, floats.div_f32, floats.negative_size_f32
larger, largest_lane = floats.max_f32, floats.largest_f32
GELU_1, GELU_3 = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(2 * np.sqrt(2 / np.pi) * 0.044715)


@inlined
def _unit(g, up, activation):
    if activation == RELU2:
        positive = larger(g, splat(np.float32(0.0)))
        return mul(mul(positive, positive), up)
    one, t = splat(np.float32(1.0)), g
    if activation == GELU:
        t = mul(g, add(splat(GELU_1), mul(splat(GELU_3), mul(g, g))))
    e = exp(negative_size(t))
    # exp ends at e^-87: a product of that and a smaller g than -100 would be something again.
    return mul(divide(mul(larger(g, splat(np.float32(-100.0))), select(g, e, one)), add(one, e)), up)


@kernel
def gated(gate, up, activation, first, last):
    """gate[i] = act(gate[i]) * up[i] for first <= i < last, in place. activation: RELU2, SILU or GELU (arrays.py).

    SiLU is gate * sigmoid(gate), with e = exp(-|gate|), which cannot overflow: 1 / (1 + e) above zero and e / (1 + e) below. GELU is
    the same with another argument of the sigmoid, of the same sign.
    """
    whole = first + (last - first) // 16 * 16
    for i in range(first, whole, 16):
        store(gate, i, _unit(load(gate, i), load(up, i), activation))
    for i in range(whole, last):
        # In a whole register too, so that a value does not depend on where a thread's rows end.
        gate[i] = largest_lane(_unit(splat(gate[i]), splat(up[i]), activation))
