"""What some models do to the inputs of a projection before they are quantised. Twin: naive/inputs.py.

keep_largest   BitNet a4.8 (arXiv 2411.04965, equation 1): of the inputs of `o` the largest half, zeros for the others
hadamard       BitNet v2 (arXiv 2504.18415): inputs of `o` and `down` are spread by a Hadamard transform, so that none stands out
"""

import numpy as np

from .jit import kernel
from .simd import floats

load, store, add, sub, butterflies = floats.load_f32, floats.store_f32, floats.add_f32, floats.sub_f32, floats.butterflies_f32


@kernel
def keep_largest(x, cols, count, out):  # type: ignore[no-untyped-def]
    """out[i] = x[i], or zero where |x[i]| is less than the count-th largest of them; ties are all kept. x, out: (>= cols,) float32.

    out may be x. The bits of the count-th largest are found from the first on, each by counting what reaches it: 31 passes at most, in
    whole registers, and fewer where some border lets exactly `count` values pass.
    """
    bits, least = x.view(np.int32), np.int32(0)
    for place in range(31):
        tried, reached = np.int32(least | np.int32(1 << (30 - place))), np.int32(0)
        for i in range(cols):
            reached += np.int32(np.int32(bits[i] & np.int32(0x7FFFFFFF)) >= tried)
        if reached >= count:
            least = tried
        if reached == count:
            break
    for i in range(cols):
        out[i] = x[i] if np.int32(bits[i] & np.int32(0x7FFFFFFF)) >= least else np.float32(0.0)


@kernel
def hadamard(x, cols, out):  # type: ignore[no-untyped-def]
    """out = each block of n values of x times the n x n Hadamard matrix / sqrt(n). x, out: (>= cols,) float32; out may be x.

    n is the largest power of two that divides cols (2,560 = 5 x 512; 6,912 = 27 x 256): the paper's widths are powers of two. Sums and
    differences of values 1, 2, 4 ... apart, in this order, so that every CPU rounds alike.
    """
    n, step = cols & -cols, 1
    if n >= 16:
        for start in range(0, cols, 16):
            store(out, start, butterflies(load(x, start)))
        step = 16
    else:
        for i in range(cols):
            out[i] = x[i]
    while step < n:
        for start in range(0, cols, 2 * step):
            if step >= 16:
                for i in range(start, start + step, 16):
                    a, b = load(out, i), load(out, i + step)
                    store(out, i, add(a, b))
                    store(out, i + step, sub(a, b))
            else:
                for i in range(start, start + step):
                    c, d = out[i], out[i + step]
                    out[i], out[i + step] = c + d, c - d
        step *= 2
    scale = np.float32(1.0 / np.sqrt(np.float64(n)))
    for i in range(cols):
        out[i] *= scale
