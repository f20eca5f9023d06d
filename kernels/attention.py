"""Causal grouped-query attention over the KV cache, computed in float32. Twin: naive/attention.py.

scores_j = q . k_j / sqrt(head_dim);  p = softmax(scores);  out = sum_j p_j v_j, j over the positions that the query may see.

Queries are taken four at a time, heads of one group or neighbouring tokens, so a key or value that has been loaded serves all four.
Keys lie in blocks of 16 positions, (blocks, dim, 16): a register then holds one element of 16 keys, scores of 16 positions come
out of plain multiply-adds with no sum over lanes, and memory is read front to back. Values lie as (positions, padded dim).
"""

import numpy as np
from numba import types
from numba.extending import overload

from .arrays import EVERYTHING
from .exponential import exp
from .jit import kernel
from .simd import floats, selected, vectors
from .simd.vectors import flattened

load, store, zero, splat = floats.load_f32, floats.store_f32, floats.zero_f32, floats.splat_f32
add, sub, mul, total = floats.add_f32, floats.sub_f32, floats.mul_f32, floats.total_f32
larger, largest_lane = floats.max_f32, floats.largest_f32
prefetch = vectors.prefetch
load_cached, to_f16, fma = selected.load_float, selected.to_f16, selected.fma
_MANY = selected.REGISTERS >= 32 and selected.WIDTH == 64  # one register a vector of 16 floats: 8 chains of multiply-adds fit
AHEAD = 2048  # elements of keys: 4 KB of float16
VALUE_ROWS = 64  # rows of values that are used for all of their columns before the next ones: 32 KiB at head_dim 128


@kernel
def exponentials(scores, at, length, largest):  # type: ignore[no-untyped-def]
    """scores[at + j] = exp(scores[at + j] - largest) for j < length, arguments <= 0; returns their sum. Whole 16s: more are overwritten."""
    sums, top = zero(), splat(largest)
    for j in range(at, at + length, 16):
        e = exp(sub(load(scores, j), top))
        store(scores, j, e)
        sums = add(sums, e)
    return total(sums)


@kernel
def softmax(scores, at, length):  # type: ignore[no-untyped-def]
    """scores[at : at + length] -> its softmax, in place; up to 15 elements after it are overwritten. 16 lanes at once, in one order."""
    for j in range(at + length, at + (length + 15) // 16 * 16):
        scores[j] = np.float32(-np.inf)
    top = load(scores, at)
    for j in range(at + 16, at + length, 16):
        top = larger(top, load(scores, j))
    inverse = splat(np.float32(1.0) / exponentials(scores, at, length, largest_lane(top)))
    for j in range(at, at + length, 16):
        store(scores, j, mul(load(scores, j), inverse))


@kernel
def hide(scores, at, count):  # type: ignore[no-untyped-def]
    """The first `count` scores become minus infinity: after softmax they are under 1e-37. Nothing where count <= 0."""
    for j in range(at, at + count):
        scores[j] = np.float32(-np.inf)


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
                prefetch(keys, base + d * 16 + AHEAD)
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
def _mix(scores, stride, values, first, last, width, out, wide):  # type: ignore[no-untyped-def]
    """out[i * wide + d] += sum_j scores[i * stride + j] * values[j, d], first <= j < last, for four queries and every d < width."""
    for d in range(0, width, 16):
        a0, a1, a2, a3 = load(out, d), load(out, wide + d), load(out, 2 * wide + d), load(out, 3 * wide + d)
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        j = first
        if _MANY:
            while j + 2 <= last:
                prefetch(values, (j + VALUE_ROWS) * width + d)
                prefetch(values, (j + 1 + VALUE_ROWS) * width + d)
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
        store(out, wide + d, add(a1, b1))
        store(out, 2 * wide + d, add(a2, b2))
        store(out, 3 * wide + d, add(a3, b3))


@kernel
def _scores_of_one(q, at, keys, blocks, dim, scores):  # type: ignore[no-untyped-def]
    """scores[j] = q[at : at + dim] . k_j for 16 * blocks positions: two blocks at once, so that no sum waits for the one before.

    Sums in the order of `_scores`, here and in `_mix_for_one`: a token's logits must not depend on how it was fed.
    """
    for block in range(0, blocks, 2):
        one, two = block * dim * 16, min(block + 1, blocks - 1) * dim * 16
        a, b, c, e = zero(), zero(), zero(), zero()
        for d in range(0, dim, 2):
            x, y = splat(q[at + d]), splat(q[at + d + 1])
            k, m = one + d * 16, two + d * 16
            prefetch(keys, k + AHEAD)
            prefetch(keys, m + AHEAD)
            if _MANY:
                a, b = fma(load_cached(keys, k), x, a), fma(load_cached(keys, k + 16), y, b)
                c, e = fma(load_cached(keys, m), x, c), fma(load_cached(keys, m + 16), y, e)
            else:
                a = fma(load_cached(keys, k + 16), y, fma(load_cached(keys, k), x, a))
                c = fma(load_cached(keys, m + 16), y, fma(load_cached(keys, m), x, c))
        store(scores, min(block + 1, blocks - 1) * 16, add(c, e))
        store(scores, block * 16, add(a, b))


@kernel
def _mix_for_one(scores, values, first, last, width, out, at):  # type: ignore[no-untyped-def]
    """out[at + d] += sum_j scores[j] * values[j, d], first <= j < last, for every d < width; 64 columns at once where they are there."""
    wide = width // 64 * 64
    for d in range(0, wide, 64):
        o = at + d
        a0, a1, a2, a3 = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        j = first
        if _MANY:
            while j + 2 <= last:
                v, p = j * width + d, splat(scores[j])
                prefetch(values, v + VALUE_ROWS * width)
                prefetch(values, v + 32 + VALUE_ROWS * width)
                a0, a1 = fma(load_cached(values, v), p, a0), fma(load_cached(values, v + 16), p, a1)
                a2, a3 = fma(load_cached(values, v + 32), p, a2), fma(load_cached(values, v + 48), p, a3)
                v, p = v + width, splat(scores[j + 1])
                prefetch(values, v + VALUE_ROWS * width)
                prefetch(values, v + 32 + VALUE_ROWS * width)
                b0, b1 = fma(load_cached(values, v), p, b0), fma(load_cached(values, v + 16), p, b1)
                b2, b3 = fma(load_cached(values, v + 32), p, b2), fma(load_cached(values, v + 48), p, b3)
                j += 2
        while j < last:
            v, p = j * width + d, splat(scores[j])
            prefetch(values, v + VALUE_ROWS * width)
            prefetch(values, v + 32 + VALUE_ROWS * width)
            a0, a1 = fma(load_cached(values, v), p, a0), fma(load_cached(values, v + 16), p, a1)
            a2, a3 = fma(load_cached(values, v + 32), p, a2), fma(load_cached(values, v + 48), p, a3)
            j += 1
        store(out, o, add(a0, b0))
        store(out, o + 16, add(a1, b1))
        store(out, o + 32, add(a2, b2))
        store(out, o + 48, add(a3, b3))
    for d in range(wide, width, 16):
        a, b = load(out, at + d), zero()
        for j in range(first, last):
            if _MANY and (j - first) % 2 == 1:
                b = fma(load_cached(values, j * width + d), splat(scores[j]), b)
            else:
                a = fma(load_cached(values, j * width + d), splat(scores[j]), a)
        store(out, at + d, add(a, b))


@kernel
def attend_one(q, at, length, keys, values, dim, scores, out, place, window=EVERYTHING):  # type: ignore[no-untyped-def]
    """One query, q[at : at + dim], rotated, overwritten, of one KV head -> out[place : place + width]. Otherwise as `attend`."""
    width = values.shape[1]
    scale = np.float32(1.0) / np.sqrt(np.float32(dim))
    for i in range(at, at + dim):
        q[i] *= scale
    flat = flattened(scores)
    _scores_of_one(q, at, keys, (length + 15) // 16, dim, flat)
    hide(flat, 0, length - window)
    softmax(flat, 0, length)
    for i in range(width):
        out[place + i] = np.float32(0.0)
    for first in range(0, length, VALUE_ROWS):
        _mix_for_one(flat, values, first, min(first + VALUE_ROWS, length), width, out, place)


@kernel
def attend(q, lengths, keys, values, dim, scores, out, window=EVERYTHING):  # type: ignore[no-untyped-def]
    """Four queries of one KV head.

    q: (4 * dim,) float32, rotated, overwritten;  lengths: (4,) int64, positions that each may see, the last the most.
    keys: (blocks, dim, 16) and values: (>= 16 * blocks, width) of the head, width = dim rounded up to 16; float32, or float16 bits.
    scores: (4, >= longest rounded up to 16) float32, overwritten;  out: (4 * wide,) float32, overwritten: query i at i * wide.
    window: how many of them, the last ones, each does see (sliding-window layers).
    """
    stride, width, wide = scores.shape[1], values.shape[1], out.size // 4
    longest = lengths[3]
    scale = np.float32(1.0) / np.sqrt(np.float32(dim))
    for i in range(4 * dim):
        q[i] *= scale
    flat = flattened(scores)
    _scores(q, keys, (longest + 15) // 16, dim, flat, stride)
    for i in range(4):
        hide(flat, i * stride, lengths[i] - window)
        softmax(flat, i * stride, lengths[i])
        for j in range(lengths[i], longest):
            flat[i * stride + j] = np.float32(0.0)
    for i in range(4 * wide):
        out[i] = np.float32(0.0)
    for first in range(0, longest, VALUE_ROWS):
        _mix(flat, stride, values, first, min(first + VALUE_ROWS, longest), width, out, wide)


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
