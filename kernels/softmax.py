"""Sums of exponentials of logits, which turn them into log-probabilities. Twin: naive/softmax.py."""

import numpy as np

from .exponential import exp
from .jit import entry, kernel
from .simd import doubles, floats
from .simd.vectors import flattened

load, splat, sub, largest_lane = floats.load_f32, floats.splat_f32, floats.sub_f32, floats.largest_f32
wide, zero, add, total = doubles.wide, doubles.zero_f64, doubles.add_f64, doubles.total_f64


@kernel
def sum_of_exp(logits, at, size, largest):
    """Sum of exp(logits[at + i] - largest) for i < size, in float64 of float32 values; none of them is taken for less than e^-87."""
    lanes, top, whole = zero(), splat(largest), at + size // 16 * 16
    for i in range(at, whole, 16):
        lanes = add(lanes, wide(exp(sub(load(logits, i), top))))
    sums = total(lanes)
    for i in range(whole, at + size):
        sums += np.float64(largest_lane(exp(splat(logits[i] - largest))))
    return sums


@entry
def sums_of_exp(frame, first, last):
    """frame.sums[t] of rows first <= t < last, over an arrays.SoftmaxFrame. Returns 0."""
    logits, size = flattened(frame.logits), frame.logits.shape[1]
    for t in range(first, last):
        frame.sums[t] = sum_of_exp(logits, t * size, size, frame.largest[t])
    return 0
