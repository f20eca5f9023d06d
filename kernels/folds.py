"""Inputs of projections whose weights are folded with a Hadamard transform: x becomes H (signs x) / sqrt(n) in blocks of n values.

H is Sylvester's, H[i, j] = (-1)^popcount(i & j), n a power of two from 16 on (Prism's files: 1,024). Twin: naive/folds.py.
"""

from .inputs import hadamard_blocks, own_row
from .jit import kernel
from .simd import floats

load, store, mul = floats.load_f32, floats.store_f32, floats.mul_f32


@kernel
def perhaps_fold(folds, layer, which, x, cols, out):
    """x: (>= cols,) float32 -> out: (>= cols,) float32, x folded for a projection; may be x. Whether it was: where not, out is untouched.

    folds: Weights.folds; None is known when this is compiled, and nothing is left of it. The head: layer as many as there are, which 0.
    """
    if folds is not None:
        at = folds.at[layer, which]
        if at >= 0:
            own_row(x, cols, out)
            for i in range(0, cols, 16):
                store(out, i, mul(load(out, i), load(folds.signs, at + i)))
            hadamard_blocks(out, cols, folds.block)
            return True
    return False
