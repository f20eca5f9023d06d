"""Projections whose rows come in parts with a scale each, and activations in two digits: for models that were trained with float
activations (TriLM). Twin: naive/step.py.

A model with float activations rounds nothing between two projections. Here its activations are rounded to int8 as BitNet's are, and what
that leaves, at most half a step, is rounded to 255 steps of its own: x = (q + r / f2) / f1 with int8 q, r, off by at most max|x| / 64,516
(1.6e-5 of the largest; float16, in which such models are trained, is off by up to 4.9e-4 of each). Integers stay exact; twice as many.
"""

import numpy as np

from .jit import kernel
from .quantise import quantise_row
from .ternary import matmul_scaled, matvec_scaled

AT_ONCE = 64  # rows that meet both digits before the next ones: 48 KB at 3,072 weights, read from memory once and then from L2
ADD = np.bool_(True)


@kernel
def second_digit(x, cols, factor, rest, codes, padded_cols):  # type: ignore[no-untyped-def]
    """What is left of x * factor after rounding -> codes, as `quantise_row` makes them. Returns (factor of x, sum of codes).

    x: (>= cols,) float32; rest: (>= cols,) float32, overwritten; codes: (padded_cols,) int8. The difference is exact: both stand on the
    grid of x * factor in float32.
    """
    for i in range(cols):
        scaled = x[i] * factor
        rest[i] = scaled - np.rint(scaled)
    fine, total = quantise_row(rest, cols, codes, padded_cols)
    return factor * fine, total


@kernel
def project_parts(w, s, layer, which, cols, out, place, accumulate, tokens, thread, first, last):  # type: ignore[no-untyped-def]
    """out[t, place + r] (+)= row r of projection `which` times activation row t for first <= r < last, with the scale of r's part.

    cols: a multiple of 128; parts and second digits: arrays.py, Weights.part_at and Scratch.fine_codes.
    """
    offset, part, begin = w.offsets[layer, which], w.part_at[layer, which], np.int64(0)
    two = len(s.fine_codes) > 0
    while begin < last:
        end, scale = w.part_ends[part], w.part_scales[part]
        for start in range(max(first, begin), min(last, end), AT_ONCE):
            stop = min(start + AT_ONCE, last, end)
            if tokens == 1:
                row, factor = out[0, place:], scale / s.factors[thread]
                matvec_scaled(w.packed, offset, cols, s.codes[thread], s.sums[thread], factor, row, accumulate, start, stop)
                if two:
                    factor = scale / s.fine_factors[thread]
                    matvec_scaled(w.packed, offset, cols, s.fine_codes[thread], s.fine_sums[thread], factor, row, ADD, start, stop)
                continue
            tile, room, add = s.tile[thread], s.block_sums[thread], accumulate
            codes, sums, factors = s.codes, s.sums, s.factors
            matmul_scaled(w.packed, offset, cols, codes, sums, factors, scale, tokens, out, place, add, tile, room, start, stop)
            if two:
                codes, sums, factors = s.fine_codes, s.fine_sums, s.fine_factors
                matmul_scaled(w.packed, offset, cols, codes, sums, factors, scale, tokens, out, place, ADD, tile, room, start, stop)
        begin, part = end, part + 1
