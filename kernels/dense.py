"""The head: a dense matrix, (rows, cols) of a HEAD_ kind (arrays.py), times one float32 vector. Twin: naive/dense.py.

Blocks of a row (ggml-common.h):

    q8_0    32 weights in 34 bytes: float16 d, 32 int8 q;                       w = d q
    q4_0    32 weights in 18 bytes: float16 d, 16 bytes; weight j is the lower half of byte j, weight 16 + j the upper;   w = d (q - 8)
    q6_K    256 weights in 210 bytes: 128 bytes of lower four bits, 64 of upper two, 16 int8 scales s, float16 d;   w = d s (q - 32)
    q4_K    256 weights in 144 bytes: float16 d, float16 e, 12 bytes of six-bit s and m for each 32 weights, 128 bytes;   w = d s q - e m
            of each 32 bytes the lower halves are 32 weights, the upper ones the next 32; of s and m see `scale_q4_k`

Decode reads every byte once: the loops are written for memory speed, with software prefetch. A logit is two times 16 sums, of the even and
of the odd 16 columns in their order, of products with weights in float32: dense_rows.py adds the same for many tokens.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import HEAD_BF16, HEAD_F16, HEAD_F32, HEAD_Q4_0, HEAD_Q4_K, HEAD_Q8_0
from .jit import inlined, kernel, separate
from .simd import floats, selected, vectors

PREFETCH = 4096
load_f16, one_f16, fma = selected.load_f16, selected.one_f16, selected.fma
load_f32, store_f32, zero, splat = floats.load_f32, floats.store_f32, floats.zero_f32, floats.splat_f32
add, mul, total = floats.add_f32, floats.mul_f32, floats.total_f32
load_i8, load_bf16 = floats.bytes_to_f32(), floats.load_bf16
low_nibbles, high_nibbles = floats.nibbles_to_f32(0), floats.nibbles_to_f32(4)
low_codes, high_codes = floats.nibbles_to_f32(0, 0), floats.nibbles_to_f32(4, 0)
six0, six1, six2, six3 = (floats.six_bits_to_f32(4 * (i // 2), 2 * i) for i in range(4))
prefetch = vectors.prefetch


class HeadRows(NamedTuple):
    """Where the head's rows are."""

    data: NDArray[np.uint8]  # (bytes,)
    offset: int  # byte at which they begin
    kind: int  # HEAD_ of arrays.py
    cols: int


@kernel
def row_bytes(kind, cols):
    """Bytes of one row."""
    if kind == HEAD_F32:
        return cols * 4
    if kind in (HEAD_F16, HEAD_BF16):
        return cols * 2
    if kind == HEAD_Q8_0:
        return cols // 32 * 34
    if kind == HEAD_Q4_K:
        return cols // 256 * 144
    return cols // 32 * 18 if kind == HEAD_Q4_0 else cols // 256 * 210


def _two(load: Any, size: int) -> Any:
    """`two(data, at)`: the 32 weights of a block from byte `at` on, 16 of `size` bytes in each of two registers."""
    return inlined(lambda data, at: (load(data, at), load(data, at + size)))


two_f32, two_f16, two_bf16 = _two(load_f32, 64), _two(load_f16, 32), _two(load_bf16, 32)


@inlined
def two_q8_0(data, at):
    """The 32 weights of a block, likewise."""
    scale = splat(one_f16(data, at))
    return mul(load_i8(data, at + 2), scale), mul(load_i8(data, at + 18), scale)


@inlined
def two_q4_0(data, at):
    """The 32 weights of a block, likewise."""
    scale = splat(one_f16(data, at))
    return mul(low_nibbles(data, at + 2), scale), mul(high_nibbles(data, at + 2), scale)


def _row_of(two: Any, size: int) -> Any:
    """A row of blocks of `size` bytes times x."""

    @kernel
    def row(data, at, cols, x):
        a, b = zero(), zero()
        for k in range(0, cols, 32):
            block = at + k // 32 * size
            prefetch(data, block + PREFETCH)
            if size > 64:
                prefetch(data, block + 64 + PREFETCH)
            low, high = two(data, block)
            a, b = fma(low, load_f32(x, k), a), fma(high, load_f32(x, k + 16), b)
        return total(add(a, b))

    return row


_row_f32, _row_f16, _row_bf16 = _row_of(two_f32, 128), _row_of(two_f16, 64), _row_of(two_bf16, 64)
_row_q8_0, _row_q4_0 = _row_of(two_q8_0, 34), _row_of(two_q4_0, 18)


@kernel
def _half_q6_k(data, low, high, scales, d, x, k, a, b):
    """a and b + the products of 128 weights of a q6_K block with x[k : k + 128]."""
    sums = a
    for half in range(2):
        i = 16 * half
        sums = fma(mul(six0(data, low + i, high + i), splat(d * np.int8(data[scales + half]))), load_f32(x, k + i), sums)
        sums = fma(mul(six1(data, low + 32 + i, high + i), splat(d * np.int8(data[scales + 2 + half]))), load_f32(x, k + 32 + i), sums)
        sums = fma(mul(six2(data, low + i, high + i), splat(d * np.int8(data[scales + 4 + half]))), load_f32(x, k + 64 + i), sums)
        sums = fma(mul(six3(data, low + 32 + i, high + i), splat(d * np.int8(data[scales + 6 + half]))), load_f32(x, k + 96 + i), sums)
        if half == 0:
            a, sums = sums, b
    return a, sums


@kernel
def _row_q6_k(data, at, cols, x):
    a, b = zero(), zero()
    for k in range(0, cols, 256):
        block = at + k // 256 * 210
        for line in range(0, 210, 64):
            prefetch(data, block + line + PREFETCH)
        d = one_f16(data, block + 208)
        a, b = _half_q6_k(data, block, block + 128, block + 192, d, x, k, a, b)
        a, b = _half_q6_k(data, block + 64, block + 160, block + 200, d, x, k + 128, a, b)
    return total(add(a, b))


@inlined
def scale_q4_k(data, at, i):
    """Scale and minimum of the i-th 32 weights of a q4_K block, six bits each; at: their 12 bytes.

    Bytes 0 to 3 and 4 to 7 hold s and m of the first four in their lower six bits, and in their upper two those of the last four, whose
    lower four bits are the halves of bytes 8 to 11.
    """
    if i < 4:
        return np.float32(data[at + i] & 63), np.float32(data[at + 4 + i] & 63)
    low = data[at + 4 + i]
    return np.float32(low & 15 | data[at + i - 4] >> 6 << 4), np.float32(low >> 4 | data[at + i] >> 6 << 4)


@inlined
def _pair_q4_k(a, b, codes, more, x, k, scale, least):
    """a and b + the products of 16 weights each, given by their codes, with x[k : k + 32]."""
    scale, least = splat(scale), splat(least)
    return fma(fma(codes, scale, least), load_f32(x, k), a), fma(fma(more, scale, least), load_f32(x, k + 16), b)


@kernel
def _row_q4_k(data, at, cols, x):
    a, b = zero(), zero()
    for k in range(0, cols, 256):
        block = at + k // 256 * 144
        for line in range(0, 144, 64):
            prefetch(data, block + line + PREFETCH)
        d, e = one_f16(data, block), one_f16(data, block + 2)
        for pair in range(4):
            codes, j = block + 16 + 32 * pair, k + 64 * pair
            s, m = scale_q4_k(data, block + 4, 2 * pair)
            a, b = _pair_q4_k(a, b, low_codes(data, codes), low_codes(data, codes + 16), x, j, d * s, -e * m)
            s, m = scale_q4_k(data, block + 4, 2 * pair + 1)
            a, b = _pair_q4_k(a, b, high_codes(data, codes), high_codes(data, codes + 16), x, j + 32, d * s, -e * m)
    return total(add(a, b))


@separate()
@kernel
def head_matvec(head, x, out, first, last):
    """out[r] = sum_c W[r, c] * x[c] for first <= r < last. x: (cols,) float32, cols whole blocks of 32 or more; out: (rows,) float32."""
    data, kind, cols = head.data, head.kind, head.cols
    stride = row_bytes(kind, cols)
    for r in range(first, last):
        at = head.offset + r * stride
        if kind == HEAD_F16:
            out[r] = _row_f16(data, at, cols, x)
        elif kind == HEAD_F32:
            out[r] = _row_f32(data, at, cols, x)
        elif kind == HEAD_Q8_0:
            out[r] = _row_q8_0(data, at, cols, x)
        elif kind == HEAD_Q4_0:
            out[r] = _row_q4_0(data, at, cols, x)
        elif kind == HEAD_Q4_K:
            out[r] = _row_q4_k(data, at, cols, x)
        elif kind == HEAD_BF16:
            out[r] = _row_bf16(data, at, cols, x)
        else:
            out[r] = _row_q6_k(data, at, cols, x)
