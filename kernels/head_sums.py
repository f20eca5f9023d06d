"""What the head's planes (head_planes.py) say of logits: their code sums with the activations of one token or of several.

Six bits of every row are read once, in four streams through a thread's rows, however many tokens there are: the rows of one token are
read at the speed of memory. With more tokens, where a set multiplies any bytes, all eight bits are read: as many
products, a third more bytes, and no second look at what six bits leave of each token (docs/log.md#eight-bits). Twin: naive/head_planes.py.
"""

import numpy as np

from . import staged
from .jit import inlined, kernel
from .operands import Codes
from .row_sums import bytes_of, four_of, four_rows, further, listed, one_row
from .simd import doubles, floats, plane_codes, selected, vectors
from .staged import TILE_ROWS, Columns, Rows, Walk, begin_tiles, end_tiles, staged_sums, turn
from .tile import MATRIX
from .tile import TILE_ROWS as GAP

WIDTH = selected.WIDTH
flattened = vectors.flattened
load_i32, load_f32, store_f32 = vectors.loader(floats.I32x16), floats.load_f32, floats.store_f32
add, sub, mul, splat = doubles.add_f64, doubles.sub_f64, doubles.mul_f64, doubles.splat_f64
wide, narrow, of_i32 = doubles.wide, doubles.narrow, doubles.of_i32
WHOLE = selected.ANY_BYTE and not MATRIX
EACH = selected.TILE_TOKENS  # vectors that meet whole codes of two rows at once
PACKED_ROWS = 4 if EACH == 8 else 2  # that meet two vectors at once
no_sums_2, add_six_2, keep_2 = plane_codes.operations(PACKED_ROWS, 2, 6)
no_sums_each, add_eight_each, keep_each = plane_codes.operations(2, EACH, 8)
STEPS = 16  # rows of each stream whose sums wait to be scaled, all at once
STREAMS = 4
SOME_SUMS = STEPS * STREAMS  # of one vector of activations
AHEAD = 1920  # bytes ahead in each stream; 5,760, three rows of 2,560 columns, are too many for L1 (docs/log.md#panel-prefetch)
NEAR = np.int64(3)  # the same of rows that are chosen
START, ONE = np.int64(0), np.int64(1)


@kernel
def six_bit_sums_2(planes, starts, ahead, stride, codes, out, place):
    """out[place + i STEPS + v SOME_SUMS] = sum of six bits of row i with vector v of two. planes: (six, low); stride: bytes of six."""
    registers = no_sums_2()
    for byte in range(0, stride // 3, WIDTH):
        registers = add_six_2(registers, planes, starts, ahead, byte, codes.values, codes.first, codes.gap)
    keep_2(registers, out, place, STEPS, SOME_SUMS)


@kernel
def eight_bit_sums(planes, starts, ahead, stride, codes, out, place):
    """As six_bit_sums_2, of whole codes of two rows with EACH vectors."""
    registers = no_sums_each()
    for byte in range(0, stride // 3, WIDTH):
        registers = add_eight_each(registers, planes, starts, ahead, byte, codes.values, codes.first, codes.gap)
    keep_each(registers, out, place, STEPS, SOME_SUMS)


@inlined
def _six_bits_of_four(bits, starts, ahead, stride, codes, out, place):
    """Sums of six bits of four rows with two vectors; meanwhile asks for what is at `ahead`."""
    if PACKED_ROWS == 4:
        six_bit_sums_2(bits, starts, ahead, stride, codes, out, place)
    else:
        six_bit_sums_2(bits, starts[:2], ahead[:2], stride, codes, out, place)
        six_bit_sums_2(bits, starts[2:], ahead[2:], stride, codes, out, place + 2 * STEPS)


@inlined
def _sums_of_four(bits, starts, ahead, stride, codes, whole, out, place):
    """As _six_bits_of_four, or of `whole` codes with EACH vectors."""
    if WHOLE:
        if whole:
            eight_bit_sums(bits, starts[:2], ahead[:2], stride, codes, out, place)
            eight_bit_sums(bits, starts[2:], ahead[2:], stride, codes, out, place + 2 * STEPS)
        else:
            _six_bits_of_four(bits, starts, ahead, stride, codes, out, place)
    else:
        _six_bits_of_four(bits, starts, ahead, stride, codes, out, place)


@kernel
def _scale(sums, at, fine, count, scales, row, terms, nearly):
    """nearly[row + i] = scale * (sums[at + i] * c0 + sums[fine + i] * c1 - c2) for i < count. terms: c0, c1, c2."""
    c0, c1, c2 = terms
    if count == STEPS:
        first, second = mul(of_i32(load_i32(sums, at)), splat(c0)), mul(of_i32(load_i32(sums, fine)), splat(c1))
        store_f32(nearly, row, narrow(mul(wide(load_f32(scales, row)), sub(add(first, second), splat(c2)))))
        return
    for i in range(count):
        nearly[row + i] = np.float32(np.float64(scales[row + i]) * (np.float64(sums[at + i]) * c0 + np.float64(sums[fine + i]) * c1 - c2))


@kernel
def _bits_by_tiles(planes, length, s, tokens, sums, tile, first, last):
    """As bits_of_all, of whole codes with both digits, by AMX (staged.py)."""
    rows, place, stages = Rows((planes.six, planes.low), 0, length // 4, last), START, length // 4 // staged.BYTES
    turn(s.digits, 2 * tokens, 4 * stages, tile)
    begin_tiles()
    for row in range(first - TILE_ROWS, last, TILE_ROWS):
        after, begun = min(row + TILE_ROWS, last - 1), 0 if row >= first else stages - 1
        walk = Walk(row, after, begun, (row + TILE_ROWS) * rows.stride, TILE_ROWS * staged.BYTES)
        place = staged_sums(rows, walk, Columns(staged.TURNED, 2 * tokens), tile, place, sums)
        for t in range(tokens if row >= first else 0):
            terms = s.terms[t, 0] * 0.25, s.terms[t, 1] * 0.25, 127.5 * (s.terms[t, 2] + s.terms[t, 3])
            for i in range(0, min(TILE_ROWS, last - row), STEPS):
                at, fine = (1 + t) * GAP + i, (1 + tokens + t) * GAP + i
                _scale(sums, at, fine, min(STEPS, last - row - i), planes.scales, row + i, terms, s.nearly[t])
    end_tiles()


@inlined
def by_tiles(tokens):
    """Whether bits_of_all takes whole codes and both digits, by AMX."""
    return MATRIX and tokens > 2


@inlined
def whole_codes(vectors):
    """Whether bits_of_all reads all eight bits for so many vectors of activations."""
    return WHOLE and vectors > 4


@inlined
def bits_of_all(planes, length, s, tokens, both, sums, tile, first, last):
    """s.nearly[t, r], what the first six or all bits of row r say of its logit with token t, for first <= r < last.

    s: Scratch: of its `digits`, which are `length` long, second ones count where `both` is; of `terms`, what sums with either digit are
    multiplied by, and sums of what the digits stand for;
    sums: Scratch.plane_sums of a thread, and tile: (>= arrays.staged_bytes,) uint8, overwritten.
    """
    if by_tiles(tokens):
        _bits_by_tiles(planes, length, s, tokens, sums, tile, first, last)
        return
    stride, quarter, vectors = length // 4 * 3, (last - first + 3) // 4, 2 * tokens if both else tokens
    values, gap, terms, whole = flattened(s.digits), s.digits.shape[1], s.terms, whole_codes(vectors)
    bits, (unit, middle) = (planes.six, planes.low), (0.25, 127.5) if whole else (1.0, 126.0)
    for begin in range(0, quarter, STEPS):
        count = min(STEPS, quarter - begin)
        for v in range(0, vectors, EACH if whole else 2):  # so few that they stay in the L1 cache; the rows come again from L2
            for i in range(count):
                # Where rows do not divide by four, the last streams meet rows of the ones before, and write the same again.
                starts = bytes_of(four_of(first + begin + i, quarter, last - 1), START, stride)
                _sums_of_four(bits, starts, further(starts, AHEAD), stride, Codes(values, v * gap, gap), whole, sums, v * SOME_SUMS + i)
        for t in range(tokens):
            for stream in range(STREAMS):
                row = first + begin + stream * quarter
                at, some = t * SOME_SUMS + stream * STEPS, min(count, last - row)
                fine, c1, total = at, 0.0, terms[t, 2]
                if both:
                    fine, c1, total = at + tokens * SOME_SUMS, terms[t, 1], terms[t, 2] + terms[t, 3]
                _scale(sums, at, fine, some, planes.scales, row, (terms[t, 0] * unit, c1 * unit, middle * total), s.nearly[t])


@kernel
def add_two_bits(planes, length, codes, c0, c1, nearly, rows):
    """nearly[r] += scale of r * (code sum with the 2-bit plane * c0 - c1) for r in rows."""
    low, scales, stride, quarter, end = planes.low, planes.scales, length // 4, len(rows) // 4, len(rows) - 1
    for i in range(quarter):
        chosen, near = listed(rows, four_of(i, quarter, end)), four_of(min(i + NEAR, quarter - 1), quarter, end)
        sums = four_rows(low, bytes_of(chosen, START, stride), bytes_of(listed(rows, near), START, stride), stride, codes)
        for k in range(4):
            nearly[chosen[k]] += np.float32(scales[chosen[k]] * (sums[k] * c0 - c1))
    for i in range(4 * quarter, len(rows)):
        nearly[rows[i]] += np.float32(scales[rows[i]] * (one_row(low, rows[i] * stride, stride, codes) * c0 - c1))


@inlined
def add_six_bits(planes, length, digits, token, c0, c1, nearly, rows, sums):
    """The same of the first six bits, with row `token` of digits (the next is read too). sums: (4 SOME_SUMS,) int32, overwritten."""
    stride, codes, end = length // 4 * 3, Codes(flattened(digits), token * digits.shape[1], digits.shape[1]), len(rows) - 1
    for start in range(0, len(rows), STREAMS):
        chosen, near = listed(rows, four_of(start, ONE, end)), listed(rows, four_of(start + 4, ONE, end))
        _six_bits_of_four(
            (planes.six, planes.low), bytes_of(chosen, START, stride), bytes_of(near, START, stride), stride, codes, sums, START
        )
        for i in range(min(STREAMS, len(rows) - start)):
            r = rows[start + i]
            nearly[r] += np.float32(planes.scales[r] * (sums[i * STEPS] * c0 - c1))
