"""Ternary rows at 1.6 bits a weight, for decode: five weights a byte, as digits of a fraction in base 3. Twin: naive/base3.py.

Five weight codes c0 .. c4 (0, 1, 2 for -1, 0, +1) are n = 81 c0 + 27 c1 + 9 c2 + 3 c3 + c4 <= 242 and are kept as v = 256 n / 243,
rounded up (the same numbers as in TQ1_0 of llama.cpp). Taken as a fraction of 256, v's digits are the codes: with r0 = v and
r(k+1) = 3 r(k) mod 256,

    c(k) = floor(3 r(k) / 256) = (3 r(k) - r(k+1)) / 256.

The right side is linear, so where an instruction multiplies any unsigned byte no digit need be taken out of its byte at all:

    sum of c(k) x(k) = (3 sum of r(k) x(k) - sum of r(k+1) x(k)) / 256

costs two additions (3 r) and two dot products a digit, 20 instructions for 320 weights in a 64-byte register; masking digits out costs
28. It is exact though sums wrap around: the difference is 256 times a sum below 2^23 for rows of up to 32,767 weights. Elsewhere digits are
taken by comparing.

Rows are built from I2_S at load (`build_base3`). Byte j of register g of a row holds the weights that meet byte j of the activations'
registers 5 g .. 5 g + 4, as they lie for 2-bit rows (quantise.py). What is left over of the last five is code 0 and meets what lies after
the activations: there must be memory, no matter what is in it. docs/log.md#decode-at-1-6 has the rates.
"""

import numpy as np

from .arrays import base3_row_bytes
from .jit import entry, inlined, kernel, separate
from .row_sums import bytes_of, four_of, further, listed, prefetch_four
from .simd import selected, trits, vectors
from .ternary import NEXT_ROWS, PREFETCH, unpack

WIDTH = selected.WIDTH
load, store = selected.load, selected.store
dot, fold, totals = selected.dot, selected.fold, selected.totals
add, triple = selected.add_bytes, selected.triple
zero_narrow, zero_wide = selected.zero_narrow, selected.zero_wide
encode = trits.as_fraction(selected.Bytes)


_row_bytes = kernel(base3_row_bytes)


@kernel
def row_bytes(cols):
    """Bytes of a row of `cols` weights."""
    return _row_bytes(cols, WIDTH)


if selected.ANY_BYTE:
    subtract = vectors.binary(selected.Wide, "sub")

    @inlined
    def _add_five(p, q, v, x0, x1, x2, x3, x4):
        p, v = dot(p, v, x0), triple(v)
        q, p, v = dot(q, v, x0), dot(p, v, x1), triple(v)
        q, p, v = dot(q, v, x1), dot(p, v, x2), triple(v)
        q, p, v = dot(q, v, x2), dot(p, v, x3), triple(v)
        q, p, v = dot(q, v, x3), dot(p, v, x4), triple(v)
        return p, dot(q, v, x4)

    @inlined
    def _difference(p, q):
        return subtract(fold(fold(p, p), p), q)

    @kernel
    def four_base3_rows(rows, starts, ahead, stride, codes):
        """Code sums of the rows at four bytes; stride = row_bytes. As many bytes from the four of `ahead` on are prefetched meanwhile.

        codes: (>= 5 stride,) int8.
        """
        a0, a1, a2, a3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        b0, b1, b2, b3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        for byte in range(0, stride, WIDTH):
            k = byte * 5
            prefetch_four(rows, ahead, byte)
            x0, x1, x2 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH)
            x3, x4 = load(codes, k + 3 * WIDTH), load(codes, k + 4 * WIDTH)
            a0, b0 = _add_five(a0, b0, load(rows, starts[0] + byte), x0, x1, x2, x3, x4)
            a1, b1 = _add_five(a1, b1, load(rows, starts[1] + byte), x0, x1, x2, x3, x4)
            a2, b2 = _add_five(a2, b2, load(rows, starts[2] + byte), x0, x1, x2, x3, x4)
            a3, b3 = _add_five(a3, b3, load(rows, starts[3] + byte), x0, x1, x2, x3, x4)
        s = totals(_difference(a0, b0), _difference(a1, b1), _difference(a2, b2), _difference(a3, b3))
        return s[0] >> 8, s[1] >> 8, s[2] >> 8, s[3] >> 8

else:
    signed, digit = trits.signed(selected.Bytes), trits.next_digit(selected.Bytes)
    _BYTES_PER_FOLD = selected.STEPS_PER_FOLD // 5 * WIDTH  # each register of them makes 5 steps

    @inlined
    def _add_five(sums, v, x0, x1, x2, x3, x4):
        v = signed(v)
        sums, v = dot(sums, digit(v), x0), triple(v)
        sums, v = dot(sums, digit(v), x1), triple(v)
        sums, v = dot(sums, digit(v), x2), triple(v)
        sums, v = dot(sums, digit(v), x3), triple(v)
        return dot(sums, digit(v), x4)

    @kernel
    def four_base3_rows(rows, starts, ahead, stride, codes):
        """Code sums of the rows at four bytes; stride = row_bytes. As many bytes from the four of `ahead` on are prefetched meanwhile.

        codes: (>= 5 stride,) int8.
        """
        s0, s1, s2, s3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        begin = 0
        while begin < stride:
            end = min(begin + _BYTES_PER_FOLD, stride)
            n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
            for byte in range(begin, end, WIDTH):
                k = byte * 5
                prefetch_four(rows, ahead, byte)
                x0, x1, x2 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH)
                x3, x4 = load(codes, k + 3 * WIDTH), load(codes, k + 4 * WIDTH)
                n0 = _add_five(n0, load(rows, starts[0] + byte), x0, x1, x2, x3, x4)
                n1 = _add_five(n1, load(rows, starts[1] + byte), x0, x1, x2, x3, x4)
                n2 = _add_five(n2, load(rows, starts[2] + byte), x0, x1, x2, x3, x4)
                n3 = _add_five(n3, load(rows, starts[3] + byte), x0, x1, x2, x3, x4)
            s0, s1, s2, s3 = fold(s0, n0), fold(s1, n1), fold(s2, n2), fold(s3, n3)
            begin = end
        return totals(s0, s1, s2, s3)


@separate()
@kernel
def base3_matvec(matrix, codes, code_sum, factor, out, add, first, last):
    """As ternary.matvec_scaled, for base-3 rows: four streams, a quarter of the rows apart."""
    stride, quarter, scale = row_bytes(matrix.cols), (last - first + 3) // 4, matrix.scale / factor
    for row in range(first, first + quarter):
        # Where rows do not divide by four the last streams run past the end: there they read the last row and drop the sum.
        starts = bytes_of(four_of(row, quarter, last - 1), matrix.offset, stride)
        sums = four_base3_rows(matrix.packed, starts, further(starts, PREFETCH), stride, codes)
        for i in range(4):
            r = row + i * quarter
            if r < last:
                y = np.float32(sums[i] - code_sum) * scale
                out[r] = out[r] + y if add else y


@separate()
@kernel
def base3_matvec_chosen(matrix, codes, code_sum, factor, out, chosen, count):
    """As ternary.matvec_chosen, for base-3 rows. Rows that are not chosen are not read."""
    stride, quarter, end, scale = row_bytes(matrix.cols), (count + 3) // 4, count - 1, matrix.scale / factor
    for i in range(quarter):
        rows, ahead = listed(chosen, four_of(i, quarter, end)), listed(chosen, four_of(i + NEXT_ROWS, quarter, end))
        starts, ahead = bytes_of(rows, matrix.offset, stride), bytes_of(ahead, matrix.offset, stride)
        sums = four_base3_rows(matrix.packed, starts, ahead, stride, codes)
        for k in range(4):
            out[rows[k]] = np.float32(sums[k] - code_sum) * scale


@kernel
def build_base3(packed, offset, cols, rows, at, tile, first, last):
    """I2_S rows first <= r < last of the matrix at byte `offset` -> base-3 rows of the matrix at rows[at ...]. Returns the largest code.

    tile: (>= 5 row_bytes,) uint8, overwritten. A code 3 is no weight and has no place in base 3: rows built from it are useless.
    """
    stride, length, largest = cols // 4, row_bytes(cols), np.uint8(0)
    for i in range(5 * length):
        tile[i] = 0
    for r in range(first, last):
        unpack(packed, offset + r * stride, 0, stride, tile, 0)
        for i in range(5 * length):
            largest = max(largest, tile[i])
        for byte in range(0, length, WIDTH):
            n = load(tile, byte * 5)
            n = add(triple(n), load(tile, byte * 5 + WIDTH))
            n = add(triple(n), load(tile, byte * 5 + 2 * WIDTH))
            n = add(triple(n), load(tile, byte * 5 + 3 * WIDTH))
            n = add(triple(n), load(tile, byte * 5 + 4 * WIDTH))
            store(rows, at + r * length + byte, encode(n))
    return largest


@entry
def build_rows(frame, offset, cols, at, first, last):
    """As build_base3, over an arrays.Base3Frame."""
    return np.int64(build_base3(frame.packed, offset, cols, frame.rows, at, frame.tile, first, last))
