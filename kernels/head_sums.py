"""What the head's planes (head_planes.py) say of logits: their code sums with the activations of one token or of several.

Six bits of every row are read once, in four streams through a thread's rows, however many tokens there are: the rows of one token are
read at the speed of memory, and those of up to 16 tokens in hardly more time. Twin: naive/head_planes.py.
"""

import numpy as np

from .jit import inlined, kernel
from .row_sums import four_rows, one_row
from .simd import doubles, floats, selected, six_bits, vectors

WIDTH = selected.WIDTH
flattened = vectors.flattened
load_i32, load_f32, store_f32 = vectors.loader(floats.I32x16), floats.load_f32, floats.store_f32
add, sub, mul, splat = doubles.add_f64, doubles.sub_f64, doubles.mul_f64, doubles.splat_f64
wide, narrow, of_i32 = doubles.wide, doubles.narrow, doubles.of_i32
MANY = selected.TILE_TOKENS == 8  # there are registers for sums of two rows with eight vectors
PACKED_ROWS = 4 if MANY else 2
no_sums_2, add_six_2, keep_2 = six_bits.operations(PACKED_ROWS, 2)
no_sums_8, add_six_8, keep_8 = six_bits.operations(2, 8)
STEPS = 16  # rows of each stream whose sums wait to be scaled, all at once
STREAMS = 4
SOME_SUMS = STEPS * STREAMS  # of one vector of activations
AHEAD = 1920  # bytes ahead in each stream; 5,760, three rows of 2,560 columns, are too many for L1 (docs/log.md#panel-prefetch)
NEAR = np.int64(3)  # the same of rows that are chosen


@kernel
def six_bit_sums_2(six, starts, ahead, stride, values, first, gap, out, place, row_gap, token_gap):
    """out[place + i row_gap + t token_gap] = code sum of row i with two vectors of activations. stride: bytes of a row."""
    registers = no_sums_2()
    for byte in range(0, stride // 3, WIDTH):
        registers = add_six_2(registers, six, starts, ahead, byte, values, first, gap)
    keep_2(registers, out, place, row_gap, token_gap)


@kernel
def six_bit_sums_8(six, starts, ahead, stride, values, first, gap, out, place, row_gap, token_gap):
    """As six_bit_sums_2, of two rows with eight vectors."""
    registers = no_sums_8()
    for byte in range(0, stride // 3, WIDTH):
        registers = add_six_8(registers, six, starts, ahead, byte, values, first, gap)
    keep_8(registers, out, place, row_gap, token_gap)


@inlined
def _sums_of_four(planes, r0, r1, r2, r3, p0, p1, p2, p3, stride, values, gap, begin, vectors, out, place):
    """Code sums of four rows with vectors begin .. vectors - 1 -> out[place + SOME_SUMS v + STEPS i]; meanwhile asks for rows p0 .. p3."""
    six, v = planes.six, begin
    while MANY and v + 2 < vectors:
        at, to = v * gap, place + v * SOME_SUMS
        six_bit_sums_8(six, (r0, r1), (p0, p1), stride, values, at, gap, out, to, STEPS, SOME_SUMS)
        six_bit_sums_8(six, (r2, r3), (p2, p3), stride, values, at, gap, out, to + 2 * STEPS, STEPS, SOME_SUMS)
        v += 8
    while v < vectors:
        at, to = v * gap, place + v * SOME_SUMS
        if PACKED_ROWS == 4:
            six_bit_sums_2(six, (r0, r1, r2, r3), (p0, p1, p2, p3), stride, values, at, gap, out, to, STEPS, SOME_SUMS)
        else:
            six_bit_sums_2(six, (r0, r1), (p0, p1), stride, values, at, gap, out, to, STEPS, SOME_SUMS)
            six_bit_sums_2(six, (r2, r3), (p2, p3), stride, values, at, gap, out, to + 2 * STEPS, STEPS, SOME_SUMS)
        v += 2


@kernel
def _scale(sums, at, fine, count, scales, row, c0, c1, c2, nearly):
    """nearly[row + i] = scale * (sums[at + i] * c0 + sums[fine + i] * c1 - c2) for i < count."""
    if count == STEPS:
        first, second = mul(of_i32(load_i32(sums, at)), splat(c0)), mul(of_i32(load_i32(sums, fine)), splat(c1))
        store_f32(nearly, row, narrow(mul(wide(load_f32(scales, row)), sub(add(first, second), splat(c2)))))
        return
    for i in range(count):
        nearly[row + i] = np.float32(np.float64(scales[row + i]) * (np.float64(sums[at + i]) * c0 + np.float64(sums[fine + i]) * c1 - c2))


@inlined
def six_bits_of_all(planes, length, digits, terms, tokens, both, nearly, sums, first, last):
    """nearly[t, r], what the first six bits of row r say of its logit with token t, for first <= r < last.

    digits: (>= 2 tokens, length) int8 in kernel order, first digits of each token, then second ones, which count where `both` is;
    terms: (tokens, >= 4) float64, what the sums with either digit are multiplied by, and sums of what the digits stand for;
    nearly: (tokens, rows) float32;
    sums: (SOME_SUMS * vectors rounded up to 8,) int32, overwritten.
    """
    stride, quarter, vectors = length // 4 * 3, (last - first + 3) // 4, 2 * tokens if both else tokens
    values, gap = flattened(digits), digits.shape[1]
    for begin in range(0, quarter, STEPS):
        count = min(STEPS, quarter - begin)
        for i in range(count):
            # Where rows do not divide by four, the last streams meet rows of the ones before, and write the same again.
            row, end = first + begin + i, last - 1
            r0, r1, r2, r3 = row, min(row + quarter, end), min(row + 2 * quarter, end), min(row + 3 * quarter, end)
            s0, s1, s2, s3 = r0 * stride, r1 * stride, r2 * stride, r3 * stride
            p0, p1, p2, p3 = s0 + AHEAD, s1 + AHEAD, s2 + AHEAD, s3 + AHEAD
            _sums_of_four(planes, s0, s1, s2, s3, p0, p1, p2, p3, stride, values, gap, 0, vectors, sums, i)
        for t in range(tokens):
            for stream in range(STREAMS):
                row = first + begin + stream * quarter
                at, some = t * SOME_SUMS + stream * STEPS, min(count, last - row)
                fine, c1, total = at, 0.0, terms[t, 2]
                if both:
                    fine, c1, total = at + tokens * SOME_SUMS, terms[t, 1], terms[t, 2] + terms[t, 3]
                _scale(sums, at, fine, some, planes.scales, row, terms[t, 0], c1, 126 * total, nearly[t])


@kernel
def add_two_bits(plane, scales, length, codes, c0, c1, nearly, rows, begin, count):
    """nearly[r] += scale of r * (code sum with a 2-bit plane * c0 - c1) for r in rows[begin : begin + count]."""
    stride, quarter = length // 4, count // 4
    for i in range(begin, begin + quarter):
        a, b, c, d = rows[i], rows[i + quarter], rows[i + 2 * quarter], rows[i + 3 * quarter]
        j = min(i + NEAR, begin + quarter - 1)
        p0, p1, p2, p3 = rows[j], rows[j + quarter], rows[j + 2 * quarter], rows[j + 3 * quarter]
        sums = four_rows(
            plane, a * stride, b * stride, c * stride, d * stride, p0 * stride, p1 * stride, p2 * stride, p3 * stride, stride, codes
        )
        nearly[a] += np.float32(scales[a] * (sums[0] * c0 - c1))
        nearly[b] += np.float32(scales[b] * (sums[1] * c0 - c1))
        nearly[c] += np.float32(scales[c] * (sums[2] * c0 - c1))
        nearly[d] += np.float32(scales[d] * (sums[3] * c0 - c1))
    for i in range(begin + 4 * quarter, begin + count):
        a = rows[i]
        nearly[a] += np.float32(scales[a] * (one_row(plane, a * stride, stride, codes) * c0 - c1))


@inlined
def add_six_bits(planes, length, digits, token, c0, c1, nearly, rows, begin, count, sums):
    """The same of the first six bits, with row `token` of digits (the next is read too). sums: (4 SOME_SUMS,) int32, overwritten."""
    stride, values, gap = length // 4 * 3, flattened(digits), digits.shape[1]
    for start in range(begin, begin + count, STREAMS):
        end = begin + count - 1
        a, b, c, d = rows[start], rows[min(start + 1, end)], rows[min(start + 2, end)], rows[min(start + 3, end)]
        near = min(start + 4, end)
        p0, p1, p2, p3 = rows[near], rows[min(near + 1, end)], rows[min(near + 2, end)], rows[min(near + 3, end)]
        s0, s1, s2, s3, t0, t1, t2, t3 = (
            a * stride,
            b * stride,
            c * stride,
            d * stride,
            p0 * stride,
            p1 * stride,
            p2 * stride,
            p3 * stride,
        )
        _sums_of_four(planes, s0, s1, s2, s3, t0, t1, t2, t3, stride, values, gap, token, token + 1, sums, -token * SOME_SUMS)
        for i in range(min(STREAMS, begin + count - start)):
            r = rows[start + i]
            nearly[r] += np.float32(planes.scales[r] * (sums[i * STEPS] * c0 - c1))
