"""Causal attention of one query head over the KV cache, in float32. Twin: naive/attention.py.

scores_j = q . k_j / sqrt(head_dim);  p = softmax(scores);  out = sum_j p_j v_j, j over positions 0 .. length - 1.
"""

import numpy as np

from .jit import fast_kernel

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts (Cody and Waite): the first has few bits, so n * part is exact
_LN2_LOW = np.float32(-2.12194440e-4)


@fast_kernel
def exponentials(scores, length, largest):  # type: ignore[no-untyped-def]
    """scores[j] = exp(scores[j] - largest) in place, for arguments <= 0; returns their sum.

    exp(x) = 2^n * exp(r), r = x - n ln 2 within ±0.35, by a polynomial of degree 6 (relative error under 2e-7). Written out because
    the C library's expf is one call a value; this loop becomes vectors.
    """
    total = np.float32(0.0)
    for j in range(length):
        x = max(scores[j] - largest, np.float32(-87.0))
        n = np.rint(x * _LOG2E)
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = np.float32(1.3888889e-3)
        p = p * r + np.float32(8.3333333e-3)
        p = p * r + np.float32(4.1666667e-2)
        p = p * r + np.float32(1.6666667e-1)
        p = p * r + np.float32(0.5)
        p = p * r * r + r + np.float32(1.0)
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        value = p * power
        scores[j] = value
        total += value
    return total


@fast_kernel
def attend(query, at, keys, values, length, head_dim, scores, out, place):  # type: ignore[no-untyped-def]
    """query: flat float32, the head begins at `at`; keys, values: (context, head_dim) float32 of its KV head; length: positions to see.

    scores: (>= length,) float32, overwritten; out: flat float32, head_dim values from `place`.
    """
    scale = np.float32(1.0) / np.sqrt(np.float32(head_dim))
    largest = np.float32(-np.inf)
    for j in range(length):
        total = np.float32(0.0)
        for d in range(head_dim):
            total += query[at + d] * keys[j, d]
        scores[j] = total * scale
        largest = max(largest, scores[j])
    inverse = np.float32(1.0) / exponentials(scores, length, largest)
    for d in range(head_dim):
        out[place + d] = np.float32(0.0)
    for j in range(length):
        p = scores[j] * inverse
        for d in range(head_dim):
            out[place + d] += p * values[j, d]
