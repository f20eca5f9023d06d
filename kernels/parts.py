"""What models that were trained with float activations (TriLM) need beside one int8 code an activation and one scale a matrix.

Two digits: such a model rounds nothing between two projections. Here its activations are rounded to int8 as BitNet's are, and what that
leaves, at most half a step, is rounded to 255 steps of its own: x = (q + r / f2) / f1 with int8 q and r, off by at most max|x| / 64,516
(1.6e-5 of the largest; float16, in which such models are trained, is off by up to 4.9e-4 of each). Integers stay exact; there are twice as
many. Twin: naive/step.py.

Parts: rows of a matrix with a scale each (arrays.py, Weights.part_at).
"""

import numpy as np

from .jit import inlined, kernel
from .tile import MATRIX

# Rows, whole tiles, that meet both digits before the next: 72 KB at 3,072 weights, read from memory once and then from L2. AMX turns all
# activations for each such product, which more rows make up for (docs/log.md#stages).
AT_ONCE = 512 if MATRIX else 96


@kernel
def left_over(x, cols, factor, rest):
    """rest = what x * factor loses when it is rounded; exact, since both stand on one grid. x, rest: (>= cols,) float32."""
    for i in range(cols):
        scaled = x[i] * factor
        rest[i] = scaled - np.rint(scaled)


@inlined
def end_and_scale(w, product, part):
    """Of the part after `part` others of a projection: the row where it ends, and its scale. Without parts, all rows are one."""
    if len(w.part_at) == 0:
        return product.rows, w.scales[product.layer, product.which]
    i = w.part_at[product.layer, product.which] + part
    return w.part_ends[i], w.part_scales[i]


@kernel
def scale_parts(w, product, source, to, mine, first, last):
    """What `to` says = products in `source` times the scale of the part that their row is in, first <= r < last, of a Share's tokens.

    product, source, to: operands.py's Product and, twice, Destination.
    """
    begin, part = np.int64(0), np.int64(0)
    while begin < last:
        end, scale = end_and_scale(w, product, part)
        for r in range(max(first, begin), min(last, end)):
            for t in range(mine.begin, mine.end):
                y = source.out[t, source.place + r] * scale
                to.out[t, to.place + r] = to.out[t, to.place + r] + y if to.add else y
        begin, part = end, part + 1
