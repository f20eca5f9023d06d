"""Ternary weights times int8 activations: integers until the end. Twin: naive/ternary.py.

`packed` is a flat byte array; a matrix starts at byte `offset` and has I2_S rows of cols / 4 bytes, cols a multiple of 128.
`codes` holds activations in kernel order (quantise.py). With weight codes 0, 1, 2 for -1, 0, +1,

    sum_c w[r, c] * q[c] = sum_c code[r, c] * q[c] - sum_c q[c].

Decode reads each weight once, so `matvec` works on the packed bytes, four rows a pass, and asks for memory PREFETCH bytes ahead. Prefill
has many tokens, so `matmul` unpacks a few rows to L1 once and uses them for every token.
"""

import numpy as np

from .jit import inlined, kernel
from .simd import selected, vectors

WIDTH = selected.WIDTH
PREFETCH = 4096  # bytes; without it decode reads at a third of the memory's speed
load, load_half, store, dot, fold, total = (
    selected.load,
    selected.load_half,
    selected.store,
    selected.dot,
    selected.fold,
    selected.total,
)
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
zero_narrow, zero_wide = selected.zero_narrow, selected.zero_wide
prefetch = vectors.prefetch
_FOLD = selected.STEPS_PER_FOLD
_BYTES_PER_FOLD = _FOLD // 4 * WIDTH  # packed bytes: each register of them makes 4 steps


@inlined
def _dot_fields(sums, packed, x0, x1, x2, x3):  # type: ignore[no-untyped-def]
    return dot(dot(dot(dot(sums, field0(packed), x0), field1(packed), x1), field2(packed), x2), field3(packed), x3)


@kernel
def _four_rows(packed, at, stride, codes):  # type: ignore[no-untyped-def]
    """Code sums of the rows at bytes at, at + stride, ...; stride = cols / 4."""
    s0, s1, s2, s3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    whole = stride // WIDTH * WIDTH
    begin = 0
    while begin < whole:
        end = min(begin + _BYTES_PER_FOLD, whole)
        n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        for byte in range(begin, end, WIDTH):
            o, k = at + byte, byte * 4
            # Four rows advance together: one line of each row, every 64 bytes of a row.
            prefetch(packed, o + PREFETCH)
            prefetch(packed, o + stride + PREFETCH)
            prefetch(packed, o + 2 * stride + PREFETCH)
            prefetch(packed, o + 3 * stride + PREFETCH)
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            n0 = _dot_fields(n0, load(packed, o), x0, x1, x2, x3)
            n1 = _dot_fields(n1, load(packed, o + stride), x0, x1, x2, x3)
            n2 = _dot_fields(n2, load(packed, o + 2 * stride), x0, x1, x2, x3)
            n3 = _dot_fields(n3, load(packed, o + 3 * stride), x0, x1, x2, x3)
        s0, s1, s2, s3 = fold(s0, n0), fold(s1, n1), fold(s2, n2), fold(s3, n3)
        begin = end
    if whole < stride:  # half a register is left: 128 weights where registers hold 256
        o, k = at + whole, whole * 4
        x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
        s0 = fold(s0, _dot_fields(zero_narrow(), load_half(packed, o), x0, x1, x2, x3))
        s1 = fold(s1, _dot_fields(zero_narrow(), load_half(packed, o + stride), x0, x1, x2, x3))
        s2 = fold(s2, _dot_fields(zero_narrow(), load_half(packed, o + 2 * stride), x0, x1, x2, x3))
        s3 = fold(s3, _dot_fields(zero_narrow(), load_half(packed, o + 3 * stride), x0, x1, x2, x3))
    return total(s0), total(s1), total(s2), total(s3)


@kernel
def _one_row(packed, at, stride, codes):  # type: ignore[no-untyped-def]
    sums = zero_wide()
    whole = stride // WIDTH * WIDTH
    begin = 0
    while begin < whole:
        end = min(begin + _BYTES_PER_FOLD, whole)
        narrow = zero_narrow()
        for byte in range(begin, end, WIDTH):
            k = byte * 4
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            narrow = _dot_fields(narrow, load(packed, at + byte), x0, x1, x2, x3)
        sums = fold(sums, narrow)
        begin = end
    if whole < stride:
        k = whole * 4
        x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
        sums = fold(sums, _dot_fields(zero_narrow(), load_half(packed, at + whole), x0, x1, x2, x3))
    return total(sums)


@kernel
def matvec(packed, offset, cols, codes, out, first, last):  # type: ignore[no-untyped-def]
    """out[r] = sum_c code[r, c] * codes[c] for rows first <= r < last. codes: (padded cols,) int8;  out: (rows,) int32."""
    stride = cols // 4
    row = first
    while row + 4 <= last:
        at = offset + row * stride
        out[row], out[row + 1], out[row + 2], out[row + 3] = _four_rows(packed, at, stride, codes)
        row += 4
    while row < last:
        out[row] = _one_row(packed, offset + row * stride, stride, codes)
        row += 1


@kernel
def matvec_scaled(packed, offset, cols, codes, code_sum, scale, out, accumulate, first, last):  # type: ignore[no-untyped-def]
    """out[r] (+)= (code sum of row r - code_sum) * scale for first <= r < last.

    scale: weight scale / activation factor;  out: (rows,) float32;  accumulate: add to what is there (residual).
    """
    stride = cols // 4
    row = first
    while row < last:
        at = offset + row * stride
        if row + 4 <= last:
            sums = _four_rows(packed, at, stride, codes)
            for i in range(4):
                y = np.float32(sums[i] - code_sum) * scale
                out[row + i] = out[row + i] + y if accumulate else y
            row += 4
        else:
            y = np.float32(_one_row(packed, at, stride, codes) - code_sum) * scale
            out[row] = out[row] + y if accumulate else y
            row += 1


@kernel
def unpack_row(packed, at, stride, tile, place):  # type: ignore[no-untyped-def]
    """One packed row at byte `at` -> codes 0..2, one a byte, in kernel order, at tile[place ...]."""
    whole = stride // WIDTH * WIDTH
    for byte in range(0, whole, WIDTH):
        v, k = load(packed, at + byte), place + byte * 4
        store(tile, k, field0(v))
        store(tile, k + WIDTH, field1(v))
        store(tile, k + 2 * WIDTH, field2(v))
        store(tile, k + 3 * WIDTH, field3(v))
    if whole < stride:
        v, k = load_half(packed, at + whole), place + whole * 4
        store(tile, k, field0(v))
        store(tile, k + WIDTH, field1(v))
        store(tile, k + 2 * WIDTH, field2(v))
        store(tile, k + 3 * WIDTH, field3(v))


@kernel
def _tile_2x4(tile, second, t0, t1, t2, t3, length):  # type: ignore[no-untyped-def]
    """Code sums of 2 unpacked rows (at tile[0] and tile[second]) with 4 tokens, each (>= length,) int8: 8 int32, row by row."""
    a0, a1, a2, a3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    b0, b1, b2, b3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    begin = 0
    while begin < length:
        end = min(begin + _FOLD * WIDTH, length)
        n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        m0, m1, m2, m3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        for k in range(begin, end, WIDTH):
            u, v = load(tile, k), load(tile, second + k)
            x = load(t0, k)
            n0, m0 = dot(n0, u, x), dot(m0, v, x)
            x = load(t1, k)
            n1, m1 = dot(n1, u, x), dot(m1, v, x)
            x = load(t2, k)
            n2, m2 = dot(n2, u, x), dot(m2, v, x)
            x = load(t3, k)
            n3, m3 = dot(n3, u, x), dot(m3, v, x)
        a0, a1, a2, a3 = fold(a0, n0), fold(a1, n1), fold(a2, n2), fold(a3, n3)
        b0, b1, b2, b3 = fold(b0, m0), fold(b1, m1), fold(b2, m2), fold(b3, m3)
        begin = end
    return total(a0), total(a1), total(a2), total(a3), total(b0), total(b1), total(b2), total(b3)


@kernel
def _unpack_pair(packed, offset, cols, row, pair, tile):  # type: ignore[no-untyped-def]
    """Rows row and row + 1 (only the first where pair is 1) -> tile; returns their padded length."""
    length = (cols + 4 * WIDTH - 1) // (4 * WIDTH) * (4 * WIDTH)
    for i in range(pair):
        unpack_row(packed, offset + (row + i) * (cols // 4), cols // 4, tile, i * length)
    return length


@kernel
def matmul(packed, offset, cols, codes, tokens, out, tile, first, last):  # type: ignore[no-untyped-def]
    """out[t, r] = sum_c code[r, c] * codes[t, c] for first <= r < last and every token t.

    codes: (>= tokens rounded up to 4, padded cols) int8;  out: (tokens, rows) int32;  tile: (>= 2 * padded cols,) uint8, overwritten.
    """
    for row in range(first, last, 2):
        pair = min(2, last - row)
        length = _unpack_pair(packed, offset, cols, row, pair, tile)
        for t in range(0, tokens, 4):
            sums = _tile_2x4(tile, (pair - 1) * length, codes[t], codes[t + 1], codes[t + 2], codes[t + 3], length)
            for i in range(min(4, tokens - t)):
                for j in range(pair):
                    out[t + i, row + j] = sums[4 * j + i]


@kernel
def matmul_scaled(packed, offset, cols, codes, code_sums, factors, scale, tokens, out, place, accumulate, tile, first, last):  # type: ignore[no-untyped-def]
    """out[t, place + r] (+)= (code sum of row r with token t - code_sums[t]) * (scale / factors[t]) for first <= r < last.

    As `matmul`; code_sums: (tokens,) int32; factors: (tokens,) float32; out: (tokens, >= place + rows) float32.
    """
    for row in range(first, last, 2):
        pair = min(2, last - row)
        length = _unpack_pair(packed, offset, cols, row, pair, tile)
        for t in range(0, tokens, 4):
            sums = _tile_2x4(tile, (pair - 1) * length, codes[t], codes[t + 1], codes[t + 2], codes[t + 3], length)
            for i in range(min(4, tokens - t)):
                for j in range(pair):
                    y = np.float32(sums[4 * j + i] - code_sums[t + i]) * (scale / factors[t + i])
                    at = place + row + j
                    out[t + i, at] = out[t + i, at] + y if accumulate else y
