"""Rows of the head (dense.py) as float32, and their products with the activations of several tokens: weights are read once for all.

A token's logits have the bits of dense.py's: the same products, added in the same order.
"""

from typing import Any

import numpy as np

from .arrays import HEAD_BF16, HEAD_COLS, HEAD_F16, HEAD_F32, HEAD_Q4_0, HEAD_Q4_K, HEAD_Q8_0, HEAD_ROWS, HEAD_TOKENS
from .dense import high_codes, low_codes, row_bytes, scale_q4_k, six0, six1, six2, six3, two_bf16, two_f16, two_f32, two_q4_0, two_q8_0
from .jit import inlined, kernel, separate
from .simd import dot_products, floats, selected, vectors

flattened, prefetch_to_l2 = vectors.flattened, vectors.prefetch_to_l2
fma, one_f16, mul, splat, store_f32 = selected.fma, selected.one_f16, floats.mul_f32, floats.splat_f32, floats.store_f32
# Sums of so many rows and tokens, two times 16 floats each, stay in registers.
ROWS, TOKENS = (2, 4) if selected.TILE_TOKENS == 8 else (1, 2)
L1_FLOATS = 8192  # activations and weights that stay in L1
no_sums, load_sums, store_sums, add_step, keep = dot_products.operations(ROWS, TOKENS)


@inlined
def _keep_q4_k(codes, more, out, k, d, e, s, m):
    """The 32 weights of these codes -> out[k : k + 32]."""
    scale, least = splat(d * s), splat(-e * m)
    store_f32(out, k, fma(codes, scale, least))
    store_f32(out, k + 16, fma(more, scale, least))


@kernel
def _values_q4_k(data, at, cols, ahead, out):
    for k in range(0, cols, 256):
        block = at + k // 256 * 144
        for line in range(0, 144, 64):
            prefetch_to_l2(data, block + line + ahead)
        d, e = one_f16(data, block), one_f16(data, block + 2)
        for pair in range(4):
            codes, j = block + 16 + 32 * pair, k + 64 * pair
            s, m = scale_q4_k(data, block + 4, 2 * pair)
            _keep_q4_k(low_codes(data, codes), low_codes(data, codes + 16), out, j, d, e, s, m)
            s, m = scale_q4_k(data, block + 4, 2 * pair + 1)
            _keep_q4_k(high_codes(data, codes), high_codes(data, codes + 16), out, j + 32, d, e, s, m)


@kernel
def _half_values_q6_k(data, low, high, scales, d, out, k):
    """128 weights of a q6_K block -> out[k : k + 128]."""
    for half in range(2):
        i = 16 * half
        store_f32(out, k + i, mul(six0(data, low + i, high + i), splat(d * np.int8(data[scales + half]))))
        store_f32(out, k + 32 + i, mul(six1(data, low + 32 + i, high + i), splat(d * np.int8(data[scales + 2 + half]))))
        store_f32(out, k + 64 + i, mul(six2(data, low + i, high + i), splat(d * np.int8(data[scales + 4 + half]))))
        store_f32(out, k + 96 + i, mul(six3(data, low + 32 + i, high + i), splat(d * np.int8(data[scales + 6 + half]))))


@kernel
def _values_q6_k(data, at, cols, ahead, out):
    for k in range(0, cols, 256):
        block = at + k // 256 * 210
        for line in range(0, 210, 64):
            prefetch_to_l2(data, block + line + ahead)
        d = one_f16(data, block + 208)
        _half_values_q6_k(data, block, block + 128, block + 192, d, out, k)
        _half_values_q6_k(data, block + 64, block + 160, block + 200, d, out, k + 128)


def _values_of(two: Any, size: int) -> Any:
    """The weights of a row of blocks of `size` bytes -> out."""

    @kernel
    def values(data, at, cols, ahead, out):
        for k in range(0, cols, 32):
            block = at + k // 32 * size
            prefetch_to_l2(data, block + ahead)
            if size > 64:
                prefetch_to_l2(data, block + 64 + ahead)
            low, high = two(data, block)
            store_f32(out, k, low)
            store_f32(out, k + 16, high)

    return values


_values_f32, _values_f16, _values_bf16 = _values_of(two_f32, 128), _values_of(two_f16, 64), _values_of(two_bf16, 64)
_values_q8_0, _values_q4_0 = _values_of(two_q8_0, 34), _values_of(two_q4_0, 18)


@kernel
def row_values(data, at, kind, cols, ahead, out):
    """Whole blocks of a row from byte `at` on -> out: (>= cols,) float32, exactly as head_matvec multiplies them.

    Meanwhile as many bytes, `ahead` further on, are brought to the L2 cache.
    """
    if kind == HEAD_F16:
        _values_f16(data, at, cols, ahead, out)
    elif kind == HEAD_F32:
        _values_f32(data, at, cols, ahead, out)
    elif kind == HEAD_Q8_0:
        _values_q8_0(data, at, cols, ahead, out)
    elif kind == HEAD_Q4_0:
        _values_q4_0(data, at, cols, ahead, out)
    elif kind == HEAD_Q4_K:
        _values_q4_k(data, at, cols, ahead, out)
    elif kind == HEAD_BF16:
        _values_bf16(data, at, cols, ahead, out)
    else:
        _values_q6_k(data, at, cols, ahead, out)


@separate()
@kernel
def head_rows(head, x, count, out, places, values, sums, first, last):
    """out[places[t], r] = sum_c W[r, c] * x[t, c] for first <= r < last and t < count.

    x: (>= count rounded up to TOKENS, >= cols) float32; out: (>= places, rows) float32; values: (2 HEAD_COLS,) float32 and
    sums: (HEAD_ROWS * HEAD_TOKENS, 32) float32, overwritten.
    """
    data, kind, cols, flat, gap, totals = head.data, head.kind, head.cols, flattened(x), x.shape[1], flattened(sums)
    stride = row_bytes(kind, cols)
    for row in range(first, last, HEAD_ROWS):
        rows = min(HEAD_ROWS, last - row)
        for token in range(0, count, HEAD_TOKENS):
            groups = (min(HEAD_TOKENS, count - token) + TOKENS - 1) // TOKENS
            block = min(L1_FLOATS // (groups * TOKENS + ROWS) // 256 * 256, HEAD_COLS)
            for begin in range(0, cols, block):
                some = min(block, cols - begin)
                for r in range(0, rows, ROWS):
                    start, both = head.offset + (row + r) * stride + row_bytes(kind, begin), min(ROWS, rows - r)
                    if kind != HEAD_F16:
                        for i in range(both):
                            row_values(data, start + i * stride, kind, some, HEAD_ROWS * stride, values[i * HEAD_COLS :])
                    for group in range(groups):
                        place, at = (r * groups + group * ROWS) * TOKENS * 32, (token + group * TOKENS) * gap + begin
                        registers = load_sums(totals, place) if begin else no_sums()
                        if kind == HEAD_F16:  # each group of tokens converts them again: that is quicker than keeping them
                            far = stride if both == ROWS else 0
                            for k in range(0, some, 32):
                                for i in range(ROWS):
                                    prefetch_to_l2(data, start + 2 * k + (HEAD_ROWS + i) * stride)
                                registers = add_step(registers, data, start + 2 * k, far, flat, at + k, gap)
                        else:
                            for k in range(0, some, 32):
                                registers = add_step(registers, values, k, HEAD_COLS, flat, at + k, gap)
                        if begin + some < cols:
                            store_sums(registers, totals, place)
                            continue
                        keep(registers, totals, place)
                        for t in range(min(TOKENS, count - token - group * TOKENS)):
                            for i in range(both):
                                out[places[token + group * TOKENS + t], row + r + i] = totals[place + t * ROWS + i]
