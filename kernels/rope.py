"""Rotary position embedding over pairs (i, i + head_dim / 2), NEOX style. Twin: naive/rope.py.

cos, sin: (head_dim / 2,) float32 of one position.
"""

from .jit import kernel


@kernel
def rotate(source, start, cos, sin, half, out, place):  # type: ignore[no-untyped-def]
    """The head at source[start : start + 2 * half] -> out[place : place + 2 * half]. May be in place."""
    for i in range(half):
        low, high = source[start + i], source[start + half + i]
        out[place + i] = low * cos[i] - high * sin[i]
        out[place + half + i] = high * cos[i] + low * sin[i]
