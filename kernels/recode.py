"""Codes with scales and minima -> rows of a Q8_0 head (arrays.RecodeFrame). Twin: naive/recode.py, to the bit.

w = scale code - minimum                    a scale and a minimum for each `group` weights, 16, 32 ...
d = max|w| / 127 of 32 weights, as float16 rounded up, so that no code is cut off
q = round(w / d)                            |w - q d| <= d / 2, and d <= max|w| / 127 (1 + 2^-10) + 2^-24
"""

import numpy as np

from .jit import entry, kernel
from .simd import floats, selected

load, splat, mul, sub, zero = floats.bytes_to_f32(), floats.splat_f32, floats.mul_f32, floats.sub_f32, floats.zero_f32
larger, largest_lane, nearest, store = floats.max_f32, floats.largest_f32, floats.nearest_i32, floats.store_low_bytes
to_f16, one_f16 = selected.to_f16, selected.one_f16


@kernel
def q8_0_rows(codes, scales, minima, group, out, at):
    """codes: (32 n,) int8; scales: (32 n / group,) float32, finite; minima: as scales, or empty for none -> out[at : at + 34 n], uint8.

    A d beyond float16 becomes infinity, and its codes mean nothing.
    """
    shifted = len(minima) > 0
    for k in range(0, len(codes), 32):
        i, j, place = k // group, (k + 16) // group, at + k // 32 * 34
        a, b = mul(load(codes, k), splat(scales[i])), mul(load(codes, k + 16), splat(scales[j]))
        if shifted:
            a, b = sub(a, splat(minima[i])), sub(b, splat(minima[j]))
        largest = largest_lane(larger(larger(a, sub(zero(), a)), larger(b, sub(zero(), b)))) / np.float32(127.0)
        bits = np.int64(to_f16(largest)) & 0x7FFF  # of -0 too
        out[place], out[place + 1] = bits & 255, bits >> 8
        step = one_f16(out, place)
        if step < largest and bits < 0x7C00:  # the next float16 has the next number
            bits += 1
            out[place], out[place + 1] = bits & 255, bits >> 8
            step = one_f16(out, place)
        inverse = splat(np.float32(1.0) / step if step > np.float32(0.0) else np.float32(0.0))
        store(out, place + 2, nearest(mul(a, inverse)))
        store(out, place + 18, nearest(mul(b, inverse)))


@entry
def recode_rows(frame, group, at):
    """As q8_0_rows, over an arrays.RecodeFrame. Returns 0."""
    q8_0_rows(frame.codes, frame.scales, frame.minima, group, frame.out, at)
    return 0
