"""Ternary weights times mostly zero activations: only the columns of `down` that meet a value are read. Twin: naive/ternary.py.

After ReLU² most int8 codes of a token are exact zeros. Columns are stored one after the other, as rows of the transposed matrix, and summed
for the codes that are not zero: the same integers as by rows (ternary.py), so the same logits bit for bit.

Column k, in the order in which codes lie (quantise.py), is (padded rows) / 4 bytes: a register of them holds codes 0..2 of 4 WIDTH output
rows, field f those of rows f WIDTH ... Four columns are interleaved byte by byte, so that each 32-bit lane has one row's four codes, and
meet their four activations in one instruction. ORDER says which row a byte must hold for sums to come out in order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .jit import entry, inlined, kernel, separate
from .row_sums import bytes_of, listed, prefetch_four
from .simd import selected, vectors
from .simd.vectors import I32, Vector

WIDTH = selected.WIDTH
LANES = WIDTH // 4
BLOCK = 4 * WIDTH  # output rows of one register of packed bytes
CHUNK_COLUMNS = 64  # columns whose bytes for all rows are read before the next ones: 40 KB at 2,560 rows, prefetched 64 ahead
Sums = Vector(I32, LANES)
load, store = selected.load, vectors.storer(Sums)
load_sums = vectors.loader(Sums)
quad_dot = selected.quad_dot
interleave = vectors.interleave_four(selected.Bytes)
repeat = vectors.repeat_word(selected.Bytes)
ORDER = np.array([(p % 16 // 4) * LANES + p // 16 * 4 + p % 4 for p in range(WIDTH)])

if selected.UNSHIFTED:  # fields stay where they are; sums come out 64, 16, 4 and 1 times too large and are shifted at the end
    field0, field1, field2, field3 = (vectors.masked(selected.Bytes, 3 << shift) for shift in (6, 4, 2, 0))
    _SHIFTS = (6, 4, 2, 0)
else:
    field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
    _SHIFTS = (0, 0, 0, 0)


class Active(NamedTuple):
    """The codes of a token that are not zero, as `find_active` finds them."""

    places: NDArray[np.int64]
    words: NDArray[np.int32]
    number: int  # of them


@kernel
def transpose(packed, offset, cols, rows, out, at, first, last):
    """I2_S rows at byte `offset` -> columns at out[at ...], output rows BLOCK * first <= r < BLOCK * last.

    packed: (bytes,) uint8, `rows` rows of `cols`; out: uint8, whole blocks of output rows: bytes past the last row become zero.
    """
    stride, length = cols // 4, (rows + BLOCK - 1) // BLOCK * WIDTH
    for block in range(first, last):
        for start in range(0, cols, 128):  # a block of 128 columns is 32 bytes of each row
            for p in range(WIDTH):
                row = block * BLOCK + ORDER[p]
                for b in range(32):
                    t0 = t1 = t2 = t3 = np.int64(0)
                    for f in range(4):
                        r, up = row + f * WIDTH, 6 - 2 * f
                        v = np.int64(packed[offset + r * stride + start // 4 + b]) if r < rows else np.int64(0)
                        t0, t1 = t0 | v >> 6 << up, t1 | (v >> 4 & 3) << up
                        t2, t3 = t2 | (v >> 2 & 3) << up, t3 | (v & 3) << up
                    place = at + _place(start + b) * length + block * WIDTH + p  # columns 32 further on lie WIDTH places further on
                    out[place], out[place + WIDTH * length] = t0, t1
                    out[place + 2 * WIDTH * length], out[place + 3 * WIDTH * length] = t2, t3


@entry
def transpose_rows(frame, offset, cols, rows, at, first, last):
    """As transpose, over an arrays.TurnFrame. Returns 0."""
    transpose(frame.packed, offset, cols, rows, frame.columns, at, first, last)
    return 0


@inlined
def _place(col):
    """Where the code of column `col` lies in kernel order."""
    return col // BLOCK * BLOCK + col % BLOCK // 128 * 32 + col % 128 // 32 * WIDTH + col % 32


@separate("int64")
@kernel
def find_active(codes, length, active, words):
    """Places of the codes that are not zero -> active, their values four to a word -> words; returns how many.

    codes: (length,) int8; active: (>= length + 4,) int64; words: (>= length / 4 + 1,) int32. The last word is filled with zeros.
    """
    count = 0
    for k in range(length):
        active[count] = k
        count += codes[k] != 0
    for i in range(count, (count + 3) // 4 * 4):
        active[i] = active[count - 1]
    for i in range(0, count, 4):
        word = np.uint32(0)
        for j in range(4):
            if i + j < count:
                word |= np.uint32(np.uint8(codes[active[i + j]])) << np.uint32(8 * j)
        words[i // 4] = np.int32(word)
    return count


@inlined
def _load_four(sums, at):
    return load_sums(sums, at), load_sums(sums, at + LANES), load_sums(sums, at + 2 * LANES), load_sums(sums, at + 3 * LANES)


@inlined
def _store_four(sums, at, a, b, c, d):
    store(sums, at, a)
    store(sums, at + LANES, b)
    store(sums, at + 2 * LANES, c)
    store(sums, at + 3 * LANES, d)


@kernel
def add_columns(columns, at, length, active, begin, end, sums, place):
    """sums[place : place + BLOCK] += code sums of BLOCK output rows with active[begin : end]; column k begins at columns[at + k * length].

    The columns CHUNK_COLUMNS further on, where there are any, are prefetched.
    """
    places, last = active.places, (active.number + 3) // 4 * 4 - 4
    a0, a1, a2, a3 = _load_four(sums, place)
    b0, b1, b2, b3 = _load_four(sums, place + WIDTH)
    c0, c1, c2, c3 = _load_four(sums, place + 2 * WIDTH)
    d0, d1, d2, d3 = _load_four(sums, place + 3 * WIDTH)
    for i in range(begin, end, 4):
        j = min(i + CHUNK_COLUMNS, last)
        prefetch_four(columns, bytes_of(listed(places, (j, j + 1, j + 2, j + 3)), at, length), 0)
        v0, v1 = load(columns, at + places[i] * length), load(columns, at + places[i + 1] * length)
        v2, v3 = load(columns, at + places[i + 2] * length), load(columns, at + places[i + 3] * length)
        w0, w1, w2, w3 = interleave(v0, v1, v2, v3)
        x = repeat(active.words[i // 4])
        a0, a1, a2, a3 = quad_dot(a0, field0(w0), x), quad_dot(a1, field0(w1), x), quad_dot(a2, field0(w2), x), quad_dot(a3, field0(w3), x)
        b0, b1, b2, b3 = quad_dot(b0, field1(w0), x), quad_dot(b1, field1(w1), x), quad_dot(b2, field1(w2), x), quad_dot(b3, field1(w3), x)
        c0, c1, c2, c3 = quad_dot(c0, field2(w0), x), quad_dot(c1, field2(w1), x), quad_dot(c2, field2(w2), x), quad_dot(c3, field2(w3), x)
        d0, d1, d2, d3 = quad_dot(d0, field3(w0), x), quad_dot(d1, field3(w1), x), quad_dot(d2, field3(w2), x), quad_dot(d3, field3(w3), x)
    _store_four(sums, place, a0, a1, a2, a3)
    _store_four(sums, place + WIDTH, b0, b1, b2, b3)
    _store_four(sums, place + 2 * WIDTH, c0, c1, c2, c3)
    _store_four(sums, place + 3 * WIDTH, d0, d1, d2, d3)


@separate()
@kernel
def matvec_by_columns(columns, active, code_sum, factor, out, sums, first, last):
    """out[r] += (code sum of row r - code_sum) * (scale / factor), for output rows BLOCK * first <= r < min(BLOCK * last, rows).

    columns: operands.Matrix of the transposed weights, `cols` being those rows; sums: (rows in whole blocks,) int32, overwritten.
    """
    rows, count, scale = columns.cols, active.number, columns.scale / factor
    length = (rows + BLOCK - 1) // BLOCK * WIDTH
    for i in range(first * BLOCK, last * BLOCK):
        sums[i] = 0
    for begin in range(0, count, CHUNK_COLUMNS):
        for block in range(first, last):
            at, end = columns.offset + block * WIDTH, min(begin + CHUNK_COLUMNS, count)
            add_columns(columns.packed, at, length, active, begin, end, sums, block * BLOCK)
    for block in range(first, last):
        for field in range(4):
            start = block * BLOCK + field * WIDTH
            for i in range(start, min(start + WIDTH, rows)):
                out[i] += np.float32((sums[i] >> _SHIFTS[field]) - code_sum) * scale
