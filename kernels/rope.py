"""Rotary position embedding. Twin: naive/rope.py.

Which values rotate together is a matter of how q and k rows were ordered when the file was written: (i, i + head_dim / 2), as models are
trained here ("NEOX"), or neighbours (2 i, 2 i + 1), as llama.cpp's architecture `llama` has them.

cos, sin: (head_dim / 2,) float32 of one position.
"""

from .jit import kernel
from .simd import floats

load, store, add, sub, mul = floats.load_f32, floats.store_f32, floats.add_f32, floats.sub_f32, floats.mul_f32


@kernel
def rotate(source, start, cos, sin, half, out, place):
    """The head at source[start : start + 2 * half] -> out[place : place + 2 * half]. May be in place."""
    whole = half // 16 * 16  # by vectors: of indices that may be negative, as far as LLVM knows, it makes none
    for i in range(0, whole, 16):
        low, high, c, s = load(source, start + i), load(source, start + half + i), load(cos, i), load(sin, i)
        store(out, place + i, sub(mul(low, c), mul(high, s)))
        store(out, place + half + i, add(mul(high, c), mul(low, s)))
    for i in range(whole, half):
        low, high = source[start + i], source[start + half + i]
        out[place + i] = low * cos[i] - high * sin[i]
        out[place + half + i] = high * cos[i] + low * sin[i]


@kernel
def rotate_pairs(source, start, cos, sin, half, out, place):
    """The same for a head whose pairs are neighbours; `out` gets them as `rotate` leaves them, i and i + half. Not in place.

    Attention adds over all values of a head, so it is enough that queries and keys have one order; and with this one the result is that of
    `rotate` for the rows in the other order, to the bit.
    """
    for i in range(half):
        low, high = source[start + 2 * i], source[start + 2 * i + 1]
        out[place + i] = low * cos[i] - high * sin[i]
        out[place + half + i] = high * cos[i] + low * sin[i]
