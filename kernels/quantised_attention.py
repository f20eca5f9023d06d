"""Attention over a QuantisedCache (kv_cache.py): the same as attention.py, on codes. Twin: naive/attention.py over naive/kv_cache.py.

The codes of a position share one step, so a block's scores are multiplied by 16 steps at once, and those of the values go into the softmax
weights: the inner loops only unpack and multiply-add. Every sum has one order, whether queries come one by one or in fours.
"""

import numpy as np

from .arrays import EVERYTHING
from .attention import hide, softmax
from .jit import inlined, kernel
from .kv_cache import COLUMNS, ROWS
from .simd import cached, floats, selected, vectors
from .simd.vectors import flattened

load, store, zero, splat = floats.load_f32, floats.store_f32, floats.zero_f32, floats.splat_f32
add, mul, total, fma, prefetch = floats.add_f32, floats.mul_f32, floats.total_f32, selected.fma, vectors.prefetch
lower_keys, upper_keys, four_values = cached.lower_keys, cached.upper_keys, cached.four_values
load_steps, value_bits = cached.load_steps, cached.value_bits
_MANY = selected.REGISTERS >= 32 and selected.WIDTH == 64
_START, _ROWS, _COLUMNS = np.int64(0), np.int64(ROWS), np.int64(COLUMNS)
AHEAD = 4096  # bytes of keys
VALUE_ROWS = 64

if _MANY:

    @inlined
    def _four_rows(k0, k1, k2, k3, q, at, a, b, c, d):  # type: ignore[no-untyped-def]
        """Elements at .. at + 3 of 16 keys times the query's, added to four sums."""
        return fma(k0, splat(q[at]), a), fma(k1, splat(q[at + 1]), b), fma(k2, splat(q[at + 2]), c), fma(k3, splat(q[at + 3]), d)

else:  # registers are few

    @inlined
    def _four_rows(k0, k1, k2, k3, q, at, a, b, c, d):  # type: ignore[no-untyped-def]
        """Elements at .. at + 3 of 16 keys times the query's, added to the first sum."""
        a = fma(k1, splat(q[at + 1]), fma(k0, splat(q[at]), a))
        return fma(k3, splat(q[at + 3]), fma(k2, splat(q[at + 2]), a)), b, c, d


@inlined
def _sum(a, b, c, d):  # type: ignore[no-untyped-def]
    return add(add(a, b), add(c, d))


@kernel
def _scores(q, wide, keys, steps, blocks, rows, scores, stride):  # type: ignore[no-untyped-def]
    """scores[i * stride + j] = q_i . k_j for four queries, q[i * wide ...], and 16 * blocks positions."""
    bytes_a_row = keys.size // (keys.shape[0] * rows)
    for block in range(blocks):
        base = block * rows
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        c0, c1, c2, c3 = zero(), zero(), zero(), zero()
        d0, d1, d2, d3 = zero(), zero(), zero(), zero()
        for row in range(0, rows, _ROWS):
            prefetch(keys, (base + row) * bytes_a_row + AHEAD)
            k0, k1, k2, k3 = lower_keys(keys, base + row)
            a0, a1, a2, a3 = _four_rows(k0, k1, k2, k3, q, row, a0, a1, a2, a3)
            b0, b1, b2, b3 = _four_rows(k0, k1, k2, k3, q, wide + row, b0, b1, b2, b3)
            c0, c1, c2, c3 = _four_rows(k0, k1, k2, k3, q, 2 * wide + row, c0, c1, c2, c3)
            d0, d1, d2, d3 = _four_rows(k0, k1, k2, k3, q, 3 * wide + row, d0, d1, d2, d3)
            k0, k1, k2, k3 = upper_keys(keys, base + row)
            a0, a1, a2, a3 = _four_rows(k0, k1, k2, k3, q, row + 4, a0, a1, a2, a3)
            b0, b1, b2, b3 = _four_rows(k0, k1, k2, k3, q, wide + row + 4, b0, b1, b2, b3)
            c0, c1, c2, c3 = _four_rows(k0, k1, k2, k3, q, 2 * wide + row + 4, c0, c1, c2, c3)
            d0, d1, d2, d3 = _four_rows(k0, k1, k2, k3, q, 3 * wide + row + 4, d0, d1, d2, d3)
        j, step = block * 16, load_steps(steps, block * 16)
        store(scores, j, mul(_sum(a0, a1, a2, a3), step))
        store(scores, stride + j, mul(_sum(b0, b1, b2, b3), step))
        store(scores, 2 * stride + j, mul(_sum(c0, c1, c2, c3), step))
        store(scores, 3 * stride + j, mul(_sum(d0, d1, d2, d3), step))


@kernel
def _scores_of_one(q, at, keys, steps, blocks, rows, scores):  # type: ignore[no-untyped-def]
    """scores[j] = q[at ...] . k_j for 16 * blocks positions: two blocks at once, so that no sum waits for the one before."""
    bytes_a_row = keys.size // (keys.shape[0] * rows)
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)
        one, two = block * rows, other * rows
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        for row in range(0, rows, _ROWS):
            prefetch(keys, (one + row) * bytes_a_row + AHEAD)
            prefetch(keys, (two + row) * bytes_a_row + AHEAD)
            k0, k1, k2, k3 = lower_keys(keys, one + row)
            a0, a1, a2, a3 = _four_rows(k0, k1, k2, k3, q, at + row, a0, a1, a2, a3)
            k0, k1, k2, k3 = lower_keys(keys, two + row)
            b0, b1, b2, b3 = _four_rows(k0, k1, k2, k3, q, at + row, b0, b1, b2, b3)
            k0, k1, k2, k3 = upper_keys(keys, one + row)
            a0, a1, a2, a3 = _four_rows(k0, k1, k2, k3, q, at + row + 4, a0, a1, a2, a3)
            k0, k1, k2, k3 = upper_keys(keys, two + row)
            b0, b1, b2, b3 = _four_rows(k0, k1, k2, k3, q, at + row + 4, b0, b1, b2, b3)
        store(scores, other * 16, mul(_sum(b0, b1, b2, b3), load_steps(steps, other * 16)))
        store(scores, block * 16, mul(_sum(a0, a1, a2, a3), load_steps(steps, block * 16)))


@kernel
def _mix_for_one(weights, values, first, last, wide, out, at):  # type: ignore[no-untyped-def]
    """out[at + d] += sum_j weights[j] * codes[j, d], first <= j < last, for every d < wide."""
    row, bits = values.size // values.shape[0], value_bits(values)
    for d in range(0, wide, _COLUMNS):
        column, o = d * bits // 8, at + d
        end = row - column - 16
        second, third, fourth = min(16, end), min(32, end), min(48, end)
        a, b, c, e = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        for j in range(first, last):
            prefetch(values, (j + VALUE_ROWS) * row + column)
            v0, v1, v2, v3 = four_values(values, j * row + column, second, third, fourth)
            p = splat(weights[j])
            a, b, c, e = fma(v0, p, a), fma(v1, p, b), fma(v2, p, c), fma(v3, p, e)
        store(out, o, a)
        store(out, o + 16, b)
        store(out, o + 32, c)
        store(out, o + 48, e)


@kernel
def _mix(weights, stride, values, first, last, wide, out):  # type: ignore[no-untyped-def]
    """As `_mix_for_one` for four queries: weights[i * stride + j] and out[i * wide + d]."""
    row, bits = values.size // values.shape[0], value_bits(values)
    for d in range(0, wide, _COLUMNS):
        column, o = d * bits // 8, d
        end = row - column - 16
        second, third, fourth = min(16, end), min(32, end), min(48, end)
        a0, a1, a2, a3 = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        o += wide
        b0, b1, b2, b3 = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        o += wide
        c0, c1, c2, c3 = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        o += wide
        d0, d1, d2, d3 = load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48)
        for j in range(first, last):
            v0, v1, v2, v3 = four_values(values, j * row + column, second, third, fourth)
            p = splat(weights[j])
            a0, a1, a2, a3 = fma(v0, p, a0), fma(v1, p, a1), fma(v2, p, a2), fma(v3, p, a3)
            p = splat(weights[stride + j])
            b0, b1, b2, b3 = fma(v0, p, b0), fma(v1, p, b1), fma(v2, p, b2), fma(v3, p, b3)
            p = splat(weights[2 * stride + j])
            c0, c1, c2, c3 = fma(v0, p, c0), fma(v1, p, c1), fma(v2, p, c2), fma(v3, p, c3)
            p = splat(weights[3 * stride + j])
            d0, d1, d2, d3 = fma(v0, p, d0), fma(v1, p, d1), fma(v2, p, d2), fma(v3, p, d3)
        _store_four(out, o, d0, d1, d2, d3)
        _store_four(out, o - wide, c0, c1, c2, c3)
        _store_four(out, o - 2 * wide, b0, b1, b2, b3)
        _store_four(out, o - 3 * wide, a0, a1, a2, a3)


@inlined
def _store_four(out, at, a, b, c, d):  # type: ignore[no-untyped-def]
    store(out, at, a)
    store(out, at + 16, b)
    store(out, at + 32, c)
    store(out, at + 48, d)


@kernel
def _take_query(q, at, dim, out, place, wide):  # type: ignore[no-untyped-def]
    """q[at : at + dim] / sqrt(dim) -> out[place ...], zero up to `wide`: `out` holds queries until their scores are known."""
    scale = np.float32(1.0) / np.sqrt(np.float32(dim))
    for i in range(dim):
        out[place + i] = q[at + i] * scale
    for i in range(dim, wide):
        out[place + i] = np.float32(0.0)


@kernel
def _weigh(scores, at, length, window, head, out, place, wide):  # type: ignore[no-untyped-def]
    """Scores of one query -> weights of the codes of its values, and what position 0 adds where it is kept whole -> out[place ...]."""
    whole = value_bits(head.values) == 3
    if whole:
        sums = zero()
        for i in range(0, wide, 16):
            sums = fma(load(out, place + i), load(head.first_key, i), sums)
        scores[at] = total(sums)
    hide(scores, at, length - window)
    softmax(scores, at, length)
    for i in range(0, wide, 16):
        store(out, place + i, mul(load(head.first_value, i), splat(scores[at])) if whole else zero())
    for j in range(0, length, 16):
        store(scores, at + j, mul(load(scores, at + j), load_steps(head.value_steps, j)))
    return 1 if whole else 0


@kernel
def attend_one(q, at, length, head, dim, scores, out, place, window=EVERYTHING):  # type: ignore[no-untyped-def]
    """One query, q[at : at + dim], rotated -> out[place : place + dim]. Otherwise as `attend`."""
    wide, rows = out.size // 4, (dim + _ROWS - 1) // _ROWS * _ROWS
    flat = flattened(scores)
    _take_query(q, at, dim, out, place, wide)
    _scores_of_one(out, place, head.keys, head.key_steps, (length + 15) // 16, rows, flat)
    begin = _weigh(flat, _START, length, window, head, out, place, wide)
    for first in range(begin, length, VALUE_ROWS):
        _mix_for_one(flat, head.values, first, min(first + VALUE_ROWS, length), wide, out, place)


@kernel
def attend(q, lengths, head, dim, scores, out, window=EVERYTHING):  # type: ignore[no-untyped-def]
    """Four queries of one KV head.

    q: (4 * dim,) float32, rotated;  lengths: (4,) int64, positions that each may see, the last the most.
    head: QuantisedCache of one head, its arrays without layers and kv_heads.
    scores: (4, >= longest rounded up to 16) float32, overwritten;  out: (4 * wide,) float32, overwritten, wide = dim rounded up to 64:
    query i at out[i * wide : i * wide + dim].
    window: how many of the positions, the last ones, each query does see (sliding-window layers).
    """
    wide, rows, stride, longest = out.size // 4, (dim + _ROWS - 1) // _ROWS * _ROWS, scores.shape[1], lengths[3]
    flat = flattened(scores)
    for i in range(4):
        _take_query(q, i * dim, dim, out, i * wide, wide)
    _scores(out, wide, head.keys, head.key_steps, (longest + 15) // 16, rows, flat, stride)
    begin = 0
    for i in range(4):
        begin = _weigh(flat, i * stride, lengths[i], window, head, out, i * wide, wide)
        for j in range(lengths[i], longest):
            flat[i * stride + j] = np.float32(0.0)
    for first in range(begin, longest, VALUE_ROWS):
        last = min(first + VALUE_ROWS, longest)
        if _MANY:
            _mix(flat, stride, head.values, first, last, wide, out)
        else:
            for i in range(4):
                _mix_for_one(flat[i * stride :], head.values, first, last, wide, out, i * wide)
