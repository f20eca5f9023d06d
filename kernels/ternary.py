"""Ternary weights times int8 activations: integers until the end. Twin: naive/ternary.py.

`packed` is a flat byte array; a matrix starts at byte `offset` and has I2_S rows of cols / 4 bytes, cols a multiple of 128.
`codes` holds activations in kernel order (quantise.py). With weight codes 0, 1, 2 for -1, 0, +1,

    sum_c w[r, c] * q[c] = sum_c code[r, c] * q[c] - sum_c q[c].

Decode reads each weight once, so `matvec` works on the packed bytes, four rows a pass, and asks for memory PREFETCH bytes ahead. Prefill
has many tokens, so `matmul_scaled` unpacks TILE_ROWS rows to L1, a block of K at a time, and uses them for every token (tile.py). Up to FEW
tokens meet the packed bytes.
"""

import numpy as np

from .jit import kernel, separate
from .row_sums import four_rows, one_row
from .simd import selected, vectors
from .simd.matrix import begin as begin_tiles
from .simd.matrix import end as end_tiles
from .tile import (
    BLOCK,
    MATRIX,
    PACKED_ROWS,
    TILE_ROWS,
    TOKENS,
    ask_for,
    packed_sums_2,
    packed_sums_8,
    scale_sums,
    sums_4,
    sums_8,
    sums_16,
    unpack_rows,
)

WIDTH = selected.WIDTH
NEXT_PACKED = 8  # rows ahead that few tokens ask for; more are gone from L1 before they are read
NEXT_ROWS = 6  # chosen rows ahead; 3 and 6 measure alike, 1 is a fifth slower (docs/log.md#decode-else-was-slow)
PREFETCH = 2048  # bytes ahead in each of the four streams: 39 GB/s on a Zen 5 core; 1024 gives 35, 4096 gives 39 (docs/log.md#streams)
load, load_half, store = selected.load, selected.load_half, selected.store
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
flattened = vectors.flattened
FEW = 8 if MATRIX else 16 if TOKENS == 8 else 6  # tokens that meet packed rows; more are worth unpacking rows to a tile (docs/log.md#few)
L1_BYTES = 14 * WIDTH  # packed bytes of a row at a time, so that the activations of 8 tokens, 28 KiB, stay in L1


@kernel
def _four_streams(packed, at, quarter, stride, codes):
    """Code sums of the rows at byte `at` and 1, 2 and 3 times `quarter` rows further on.

    Four streams that run through the matrix are prefetched by the hardware too; four neighbouring rows end before it sees them.
    """
    step = quarter * stride
    r1, r2, r3, ahead = at + step, at + 2 * step, at + 3 * step, PREFETCH
    return four_rows(packed, at, r1, r2, r3, at + ahead, r1 + ahead, r2 + ahead, r3 + ahead, stride, codes)


@kernel
def matvec(packed, offset, cols, codes, out, first, last):
    """out[r] = sum_c code[r, c] * codes[c] for rows first <= r < last. codes: (padded cols,) int8;  out: (rows,) int32."""
    stride, quarter = cols // 4, (last - first) // 4
    for row in range(first, first + quarter):
        sums = _four_streams(packed, offset + row * stride, quarter, stride, codes)
        for i in range(4):
            out[row + i * quarter] = sums[i]
    for row in range(first + 4 * quarter, last):
        out[row] = one_row(packed, offset + row * stride, stride, codes)


@separate()
@kernel
def matvec_scaled(packed, offset, cols, codes, code_sum, scale, out, accumulate, first, last):
    """out[r] (+)= (code sum of row r - code_sum) * scale for first <= r < last.

    scale: weight scale / activation factor;  out: (rows,) float32;  accumulate: add to what is there (residual).
    """
    stride, quarter = cols // 4, (last - first) // 4
    for row in range(first, first + quarter):
        sums = _four_streams(packed, offset + row * stride, quarter, stride, codes)
        for i in range(4):
            y, r = np.float32(sums[i] - code_sum) * scale, row + i * quarter
            out[r] = out[r] + y if accumulate else y
    for row in range(first + 4 * quarter, last):
        y = np.float32(one_row(packed, offset + row * stride, stride, codes) - code_sum) * scale
        out[row] = out[row] + y if accumulate else y


@separate()
@kernel
def matvec_chosen(packed, offset, cols, codes, code_sum, scale, out, chosen, count):
    """As `matvec_scaled`, for the rows chosen[0] < chosen[1] < ... < chosen[count - 1] only. Other rows are not read.

    Four streams as in `matvec`, each through a quarter of the chosen rows; each asks for the row that it reads NEXT_ROWS later.
    """
    stride, quarter = cols // 4, count // 4
    for i in range(quarter):
        a, b, c, d = chosen[i], chosen[i + quarter], chosen[i + 2 * quarter], chosen[i + 3 * quarter]
        j = min(i + NEXT_ROWS, quarter - 1)
        p0, p1 = offset + chosen[j] * stride, offset + chosen[j + quarter] * stride
        p2, p3 = offset + chosen[j + 2 * quarter] * stride, offset + chosen[j + 3 * quarter] * stride
        r0, r1, r2, r3 = offset + a * stride, offset + b * stride, offset + c * stride, offset + d * stride
        sums = four_rows(packed, r0, r1, r2, r3, p0, p1, p2, p3, stride, codes)
        out[a], out[b] = np.float32(sums[0] - code_sum) * scale, np.float32(sums[1] - code_sum) * scale
        out[c], out[d] = np.float32(sums[2] - code_sum) * scale, np.float32(sums[3] - code_sum) * scale
    i = 4 * quarter
    while i < count:
        out[chosen[i]] = np.float32(one_row(packed, offset + chosen[i] * stride, stride, codes) - code_sum) * scale
        i += 1


@kernel
def unpack(packed, row_at, begin, end, tile, place):
    """Bytes begin .. end - 1 of the packed row at `row_at` -> codes 0..2, one a byte, in kernel order, at tile[place ...]."""
    for byte in range(begin, end, WIDTH):
        v = load(packed, row_at + byte) if byte + WIDTH <= end else load_half(packed, row_at + byte)
        k = place + (byte - begin) * 4
        store(tile, k, field0(v))
        store(tile, k + WIDTH, field1(v))
        store(tile, k + 2 * WIDTH, field2(v))
        store(tile, k + 3 * WIDTH, field3(v))


@kernel
def _packed_sums(packed, at, stride, rows, codes, tokens, sums):
    """sums[(t + 1) * TILE_ROWS + i] = code sum of row i, the first at byte `at`, with token t, for i < rows <= TILE_ROWS, rows % 4 = 0."""
    values, gap, ahead, begun = flattened(codes), codes.shape[1], NEXT_PACKED * stride, 0
    for i in range(TILE_ROWS, ((tokens + 3) // 4 * 4 + 1) * TILE_ROWS):
        sums[i] = 0
    while TOKENS == 8 and begun + 4 < tokens:
        for begin in range(0, stride, L1_BYTES):
            end = min(begin + L1_BYTES, stride)
            for i in range(0, rows, 2):
                place = (begun + 1) * TILE_ROWS + i
                packed_sums_8(packed, at + i * stride, stride, begin, end, ahead, values, begun * gap, gap, sums, place)
        begun += 8
    for i in range(0, rows, PACKED_ROWS):
        for t in range(begun, tokens, 2):
            place = (t + 1) * TILE_ROWS + i
            packed_sums_2(packed, at + i * stride, stride, ahead, values, t * gap, gap, sums, place)


@separate()
@kernel
def matmul_scaled(packed, offset, cols, codes, code_sums, factors, scale, tokens, out, place, add, tile, sums, first, last):
    """out[t, place + r] (+)= (code sum of row r with token t - code_sums[t]) * (scale / factors[t]) for first <= r < last.

    codes: (>= tokens rounded up to 16, padded cols) int8;  code_sums: (tokens,) int32;  factors: (tokens,) float32;
    out: (tokens, >= place + rows) float32;  add: to what is there;
    tile: (TILE_BYTES,) uint8 and sums: (>= tokens rounded up to 16, and one more, times BLOCK_ROWS) int32, overwritten.
    """
    stride, values, gap = cols // 4, flattened(codes), codes.shape[1]
    length, block = (stride + WIDTH - 1) // WIDTH * WIDTH, BLOCK
    each = 16 if MATRIX else TOKENS
    groups = (tokens + each - 1) // each
    advance = (TILE_ROWS * stride + length * groups - 1) // (length * groups)  # so that the next tile's bytes are there in time
    for i in range(TILE_ROWS):
        sums[i] = 0  # what all sums begin with
    if MATRIX:
        begin_tiles()
    for row in range(first, last, TILE_ROWS):
        rows, at = min(TILE_ROWS, last - row), offset + row * stride
        if tokens <= FEW and rows % 4 == 0:
            _packed_sums(packed, at, stride, rows, codes, tokens, sums)
            scale_sums(sums, TILE_ROWS, code_sums, factors, scale, 0, tokens, out, place + row, rows, add)
            continue
        ask = at + rows * stride
        for begin in range(0, length, block):
            words = min(block, length - begin)
            unpack_rows(packed, at, stride, rows, begin, begin + words, tile)
            before, step = (0, 0) if begin == 0 else (TILE_ROWS, TILE_ROWS)
            for t in range(0, tokens, each):
                value, start = t * gap + 4 * begin, TILE_ROWS + (t * TILE_ROWS if length > block else 0)
                until, done = min(t + each, tokens), begin + words == length
                if done:
                    ask_for(out, t, until, place + row, rows)
                if MATRIX:
                    sums_16(tile, words, values, value, gap, sums, before + t * step, step, start, packed, ask, advance)
                elif TOKENS == 8 and t + 4 < tokens:
                    sums_8(tile, words, values, value, gap, sums, before + t * step, step, start, packed, ask, advance)
                else:
                    sums_4(tile, words, values, value, gap, sums, before + t * step, step, start, packed, ask, advance)
                ask += words * advance
                if done:
                    scale_sums(sums, start, code_sums, factors, scale, t, until, out, place + row, rows, add)
    if MATRIX:
        end_tiles()
