"""Inputs of projections in models with 4-bit activations: made sparse or spread, and rounded to 4 bits.

Twins: naive/inputs.py and naive/quantise.py.

    keep_largest      BitNet a4.8 (arXiv 2411.04965, equation 1): of the inputs of `o` the largest half, zeros for the others
    hadamard          BitNet v2 (arXiv 2504.18415): inputs of `o` and `down` are spread by a Hadamard transform, so that none stands out
    quantise_row_4    INT4: factor = sqrt(7) / mean|x|, code = round(x * factor) within -8 .. 7 (a4.8, equation 7)
                      FP4: factor = 12 / max|x|, code = twice the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, which are E2M1 (section 2.3)

mean|x| and max|x| are taken as 1e-5 at least; of two integers equally near, the even one; of two values of E2M1, that with mantissa bit 0.

All work in place on a row that is zero from `cols` up to a multiple of 16 (`own_row`), so that there is nothing but whole registers: loops
for the rest would take longer to compile than all of this.
"""

from typing import NamedTuple

import numpy as np

from .arrays import INT4
from .jit import inlined
from .quantise import largest_magnitude, place_of
from .simd import doubles, floats

load, store, splat, add, sub, mul = floats.load_f32, floats.store_f32, floats.splat_f32, floats.add_f32, floats.sub_f32, floats.mul_f32
negative_size, select, within_int4 = floats.negative_size_f32, floats.where_negative_f32, floats.clamped_f32(-8.0, 7.0)
nearest_f32, nearest, store_bytes = floats.nearest_f32, floats.nearest_i32, floats.store_low_bytes
count_reaching, keep_reaching, butterflies = floats.count_reaching, floats.keep_reaching, floats.butterflies_f32
zero_i32, add_i32, total_i32 = floats.zero_i32, floats.add_i32, floats.total_i32
LEAST, ROOT7 = np.float32(1e-5), np.float32(np.sqrt(7))


class Preparation(NamedTuple):
    """What happens to an input of projections, in this order."""

    norm: int  # RMSNorm with the weights from there on in Weights.norms; -1: none
    then: int  # another
    turned: int  # not 0: Hadamard transform
    kept: int  # not 0: all but so many of the largest become zero
    kind: int  # of codes (arrays.INT8 and others)


@inlined
def own_row(x, cols, out):
    """out = x, then zeros up to a multiple of 16. x: (>= cols,) float32, may be out; out: (>= cols rounded up,) float32."""
    for i in range(cols):
        out[i] = x[i]
    for i in range(cols, (cols + 15) // 16 * 16):
        out[i] = np.float32(0.0)


@inlined
def keep_largest(x, cols, count):
    """x[i] becomes zero where |x[i]| is less than the count-th largest; ties are all kept. x: an `own_row`.

    The bits of the count-th largest are found from the first on, each by counting what reaches it: 31 passes at most, and fewer where
    some border lets exactly `count` values pass. Bits of floats from zero up are ordered as integers, NaN above all.
    """
    least = np.int32(0)
    for place in range(31):
        tried, counts = np.int32(least | np.int32(1 << (30 - place))), zero_i32()
        for i in range(0, cols, 16):
            counts = count_reaching(counts, load(x, i), tried)
        reached = total_i32(counts)
        if reached >= count:
            least = tried
        if reached == count:
            break
    for i in range(0, cols, 16):
        store(x, i, keep_reaching(load(x, i), least))


@inlined
def hadamard(x, cols):
    """As `hadamard_blocks`; n is the largest power of two that divides cols (2,560 = 5 x 512; 6,912 = 27 x 256): the paper's widths are
    powers of two.
    """
    hadamard_blocks(x, cols, cols & -cols)


@inlined
def hadamard_blocks(x, cols, n):
    """x = each block of n of its values times the n x n Hadamard matrix / sqrt(n). x: (>= cols,) float32, cols a multiple of n, n of 16.

    Sums and differences of values 1, 2, 4 ... apart, in this order, so that every CPU rounds alike.
    """
    step = 16
    for i in range(0, cols, 16):
        store(x, i, butterflies(load(x, i)))
    while step < n:
        for start in range(0, cols, 2 * step):
            for i in range(start, start + step, 16):
                a, b = load(x, i), load(x, i + step)
                store(x, i, add(a, b))
                store(x, i + step, sub(a, b))
        step *= 2
    scale = splat(np.float32(1.0 / np.sqrt(np.float64(n))))
    for i in range(0, cols, 16):
        store(x, i, mul(load(x, i), scale))


@inlined
def _mean_magnitude(x, cols):
    """mean|x|, summed in float64 in the twin's order, rounded once."""
    lanes = doubles.zero_f64()
    for i in range(0, cols, 16):
        lanes = doubles.sub_f64(lanes, doubles.wide(negative_size(load(x, i))))
    return np.float32(doubles.total_f64(lanes) / cols)


@inlined
def _rounded(v, kind):
    """16 scaled activations -> codes. FP4: steps of 1 below 4, of 2 below 8, of 4 from there on; no clipping, as in quantise.py."""
    if kind == INT4:
        v = within_int4(v)
    else:
        size = negative_size(v)
        twos = mul(nearest_f32(mul(v, splat(np.float32(0.5)))), splat(np.float32(2.0)))
        fours = mul(nearest_f32(mul(v, splat(np.float32(0.25)))), splat(np.float32(4.0)))
        v = select(add(size, splat(np.float32(8.0))), fours, select(add(size, splat(np.float32(4.0))), twos, v))
    return nearest(v)


@inlined
def quantise_row_4(x, cols, kind, codes, padded_cols):
    """x: an `own_row` -> codes: (padded_cols,) int8 in kernel order, zero past cols. Returns (factor float32, sum of codes int32)."""
    if kind == INT4:
        mean = _mean_magnitude(x, cols)
        factor = ROOT7 / (LEAST if mean < LEAST else mean)  # NaN stays
    else:
        factor = np.float32(12.0) / largest_magnitude(x, cols, LEAST)
    factors, sums = splat(factor), zero_i32()
    for start in range(0, padded_cols, 16):
        code = zero_i32()
        if start < cols:
            code = _rounded(mul(load(x, start), factors), kind)
        store_bytes(codes, place_of(start), code)
        sums = add_i32(sums, code)
    return factor, total_i32(sums)
