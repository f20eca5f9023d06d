"""Causal grouped-query attention over the KV cache, computed in float32. Twin: naive/attention.py.

scores_j = q . k_j / sqrt(head_dim);  p = softmax(scores);  out = sum_j p_j v_j, j over the positions that the query may see.

Queries are taken four at a time, heads of one group or neighbouring tokens, so a key or value that has been loaded serves all four.
Keys lie in blocks of 16 positions, (blocks, dim, 16): a register then holds one element of 16 keys, scores of 16 positions come
out of plain multiply-adds with no sum over lanes, and memory is read front to back. Values lie as (positions, padded dim).
"""

import numpy as np
from numba import types
from numba.extending import overload

from .jit import fast_kernel, kernel
from .simd import floats, selected

load, store, zero, add, splat = floats.load_f32, floats.store_f32, floats.zero_f32, floats.add_f32, floats.splat_f32
load_cached, to_f16, fma = selected.load_float, selected.to_f16, selected.fma
_MANY = selected.REGISTERS >= 32 and selected.WIDTH == 64  # one register a vector of 16 floats: 8 chains of multiply-adds fit
VALUE_ROWS = 64  # rows of values that are used for all of their columns before the next ones: 32 KiB at head_dim 128

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts (Cody and Waite): the first has few bits, so n * part is exact
_LN2_LOW = np.float32(-2.12194440e-4)


@kernel
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for -87 <= x <= 0: 2^n * exp(r), r = x - n ln 2 within ±0.35, by a polynomial of degree 6 (relative error under 2.5e-7).

    Not a fast kernel: one that may reorder sums puts the two parts of ln 2 together again, which nearly doubles the error.
    """
    n = np.rint(x * _LOG2E)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32(1.3888889e-3)
    p = p * r + np.float32(8.3333333e-3)
    p = p * r + np.float32(4.1666667e-2)
    p = p * r + np.float32(1.6666667e-1)
    p = p * r + np.float32(0.5)
    p = p * r * r + r + np.float32(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@fast_kernel
def exponentials(scores, at, length, largest):  # type: ignore[no-untyped-def]
    """scores[at + j] = exp(scores[at + j] - largest) in place for j < length, arguments <= 0; returns their sum.

    exp is written out because the C library's expf is one call a value; this loop becomes vectors.
    """
    total = np.float32(0.0)
    for j in range(at, at + length):
        value = _exp(max(scores[j] - largest, np.float32(-87.0)))
        scores[j] = value
        total += value
    return total


@fast_kernel
def softmax(scores, at, length):  # type: ignore[no-untyped-def]
    """scores[at : at + length] -> its softmax, in place."""
    largest = np.float32(-np.inf)
    for j in range(at, at + length):
        largest = max(largest, scores[j])
    inverse = np.float32(1.0) / exponentials(scores, at, length, largest)
    for j in range(at, at + length):
        scores[j] *= inverse


@kernel
def _scores(q, keys, blocks, dim, scores, stride):  # type: ignore[no-untyped-def]
    """scores[i * stride + j] = q_i . k_j for four queries, q[i * dim ...], and 16 * blocks positions."""
    for block in range(blocks):
        base = block * dim * 16
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        if _MANY:
            for d in range(0, dim, 2):  # head_dim is even (RoPE pairs)
                k = load_cached(keys, base + d * 16)
                a0, a1 = fma(k, splat(q[d]), a0), fma(k, splat(q[dim + d]), a1)
                a2, a3 = fma(k, splat(q[2 * dim + d]), a2), fma(k, splat(q[3 * dim + d]), a3)
                k = load_cached(keys, base + d * 16 + 16)
                b0, b1 = fma(k, splat(q[d + 1]), b0), fma(k, splat(q[dim + d + 1]), b1)
                b2, b3 = fma(k, splat(q[2 * dim + d + 1]), b2), fma(k, splat(q[3 * dim + d + 1]), b3)
        else:
            for d in range(dim):
                k = load_cached(keys, base + d * 16)
                a0, a1 = fma(k, splat(q[d]), a0), fma(k, splat(q[dim + d]), a1)
                a2, a3 = fma(k, splat(q[2 * dim + d]), a2), fma(k, splat(q[3 * dim + d]), a3)
        j = block * 16
        store(scores, j, add(a0, b0))
        store(scores, stride + j, add(a1, b1))
        store(scores, 2 * stride + j, add(a2, b2))
        store(scores, 3 * stride + j, add(a3, b3))


@kernel
def _mix(scores, stride, values, first, last, width, out):  # type: ignore[no-untyped-def]
    """out[i * width + d] += sum_j scores[i * stride + j] * values[j, d], first <= j < last, for four queries and every d < width."""
    for d in range(0, width, 16):
        a0, a1, a2, a3 = load(out, d), load(out, width + d), load(out, 2 * width + d), load(out, 3 * width + d)
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        j = first
        if _MANY:
            while j + 2 <= last:
                v = load_cached(values, j * width + d)
                a0, a1 = fma(v, splat(scores[j]), a0), fma(v, splat(scores[stride + j]), a1)
                a2, a3 = fma(v, splat(scores[2 * stride + j]), a2), fma(v, splat(scores[3 * stride + j]), a3)
                v = load_cached(values, j * width + width + d)
                b0, b1 = fma(v, splat(scores[j + 1]), b0), fma(v, splat(scores[stride + j + 1]), b1)
                b2, b3 = fma(v, splat(scores[2 * stride + j + 1]), b2), fma(v, splat(scores[3 * stride + j + 1]), b3)
                j += 2
        while j < last:
            v = load_cached(values, j * width + d)
            a0, a1 = fma(v, splat(scores[j]), a0), fma(v, splat(scores[stride + j]), a1)
            a2, a3 = fma(v, splat(scores[2 * stride + j]), a2), fma(v, splat(scores[3 * stride + j]), a3)
            j += 1
        store(out, d, add(a0, b0))
        store(out, width + d, add(a1, b1))
        store(out, 2 * width + d, add(a2, b2))
        store(out, 3 * width + d, add(a3, b3))


@kernel
def attend(q, lengths, keys, values, dim, scores, out):  # type: ignore[no-untyped-def]
    """Four queries of one KV head.

    q: (4 * dim,) float32, rotated, overwritten;  lengths: (4,) int64, positions that each may see, the last the most.
    keys: (blocks, dim, 16) and values: (>= 16 * blocks, width) of the head, width = dim rounded up to 16; float32, or float16 bits.
    scores: (4, >= longest rounded up to 16) float32, overwritten;  out: (4 * width,) float32, overwritten.
    """
    stride, width = scores.shape[1], values.shape[1]
    longest = lengths[3]
    scale = np.float32(1.0) / np.sqrt(np.float32(dim))
    for i in range(4 * dim):
        q[i] *= scale
    flat = scores.reshape(scores.size)
    _scores(q, keys, (longest + 15) // 16, dim, flat, stride)
    for i in range(4):
        softmax(flat, i * stride, lengths[i])
        for j in range(lengths[i], longest):
            flat[i * stride + j] = np.float32(0.0)
    for i in range(4 * width):
        out[i] = np.float32(0.0)
    for first in range(0, longest, VALUE_ROWS):
        _mix(flat, stride, values, first, min(first + VALUE_ROWS, longest), width, out)


def _cached(array, value):  # type: ignore[no-untyped-def]
    """`value` in the type that the cache array holds."""
    return to_f16(value) if array.dtype == np.uint16 else value


@overload(_cached, inline="always")
def _cached_when_compiled(array, value):  # type: ignore[no-untyped-def]
    return (lambda array, value: to_f16(value)) if array.dtype == types.uint16 else (lambda array, value: value)


@kernel
def store_key(keys, p, source, dim):  # type: ignore[no-untyped-def]
    """keys: (blocks, dim, 16) of one head; source: (>= dim,) float32 becomes position p."""
    for d in range(dim):
        keys[p // 16, d, p % 16] = _cached(keys, source[d])


@kernel
def store_value(values, p, source, at, dim):  # type: ignore[no-untyped-def]
    """values: (positions, width) of one head; source[at : at + dim] becomes position p."""
    for d in range(dim):
        values[p, d] = _cached(values, source[at + d])
