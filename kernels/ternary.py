"""Ternary weights times int8 activations: integers until the end. Twin: naive/ternary.py.

`packed` is a flat byte array; a matrix starts at byte `offset` and has I2_S rows of cols / 4 bytes, cols a multiple of 128.
`codes` holds activations in kernel order (quantise.py). With weight codes 0, 1, 2 for -1, 0, +1,

    sum_c w[r, c] * q[c] = sum_c code[r, c] * q[c] - sum_c q[c].

Decode reads each weight once, so `matvec_scaled` works on the packed bytes, four rows a pass, and asks for memory PREFETCH bytes ahead.
Prefill has many tokens, so `matmul_scaled` unpacks TILE_ROWS rows to L1, a block of K at a time, and uses them for every token (tile.py).
Up to FEW tokens meet the packed bytes. AMX multiplies more than that in its own way (staged.py).
"""

import numpy as np

from .jit import kernel, separate
from .operands import Ahead, Codes
from .row_sums import bytes_of, four_of, four_rows, further, listed, one_row
from .simd import selected, vectors
from .staged import multiply_staged
from .tile import BLOCK, MATRIX, TILE_ROWS, TOKENS, ask_for, packed_sums, scale_sums, sums_4, sums_8, unpack_rows

WIDTH = selected.WIDTH
NEXT_ROWS = 6  # chosen rows ahead; 3 and 6 measure alike, 1 is a fifth slower (docs/log.md#decode-else-was-slow)
PREFETCH = 2048  # bytes ahead in each of the four streams: 39 GB/s on a Zen 5 core; 1024 gives 35, 4096 gives 39 (docs/log.md#streams)
load, load_half, store = selected.load, selected.load_half, selected.store
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
flattened = vectors.flattened
# Tokens that meet packed rows; more are worth unpacking rows to a tile (docs/log.md#few), or all that AMX does (#stages).
FEW = 2 if MATRIX else 8 if TOKENS == 8 else 6


@kernel
def _four_streams(packed, at, apart, stride, codes):
    """Code sums of four rows so many bytes apart: the hardware prefetches such streams too; four neighbours end before it sees them."""
    starts = at, at + apart, at + 2 * apart, at + 3 * apart
    return four_rows(packed, starts, further(starts, PREFETCH), stride, codes)


@separate()
@kernel
def matvec_scaled(matrix, codes, code_sum, factor, out, add, first, last):
    """out[r] (+)= (code sum of row r - code_sum) * (scale / factor) for first <= r < last.

    codes: (padded cols,) int8, their sum, and the activations' factor;  out: (rows,) float32;  add: to what is there (residual).
    """
    packed, stride, quarter, scale = matrix.packed, matrix.cols // 4, (last - first) // 4, matrix.scale / factor
    for row in range(first, first + quarter):
        sums = _four_streams(packed, matrix.offset + row * stride, quarter * stride, stride, codes)
        for i in range(4):
            y, r = np.float32(sums[i] - code_sum) * scale, row + i * quarter
            out[r] = out[r] + y if add else y
    for row in range(first + 4 * quarter, last):
        y = np.float32(one_row(packed, matrix.offset + row * stride, stride, codes) - code_sum) * scale
        out[row] = out[row] + y if add else y


@separate()
@kernel
def matvec_chosen(matrix, codes, code_sum, factor, out, chosen, count):
    """As `matvec_scaled`, for the rows chosen[0] < chosen[1] < ... < chosen[count - 1] only. Other rows are not read.

    Four streams, each through a quarter of the chosen rows; each asks for the row that it reads NEXT_ROWS later.
    """
    packed, stride, quarter, end, scale = matrix.packed, matrix.cols // 4, count // 4, count - 1, matrix.scale / factor
    for i in range(quarter):
        rows, near = listed(chosen, four_of(i, quarter, end)), four_of(min(i + NEXT_ROWS, quarter - 1), quarter, end)
        starts, ahead = bytes_of(rows, matrix.offset, stride), bytes_of(listed(chosen, near), matrix.offset, stride)
        sums = four_rows(packed, starts, ahead, stride, codes)
        for k in range(4):
            out[rows[k]] = np.float32(sums[k] - code_sum) * scale
    i = 4 * quarter
    while i < count:
        out[chosen[i]] = np.float32(one_row(packed, matrix.offset + chosen[i] * stride, stride, codes) - code_sum) * scale
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


@separate()
@kernel
def matmul_scaled(matrix, x, to, tile, sums, first, last):
    """out[t, place + r] (+)= (code sum of row r with token t - sum of its codes) * (scale / its factor) for first <= r < last.

    matrix, x, to: operands.py's Matrix, Inputs, Destination;
    tile: (TILE_BYTES,) uint8, with AMX arrays.staged_bytes, sums: (>= tokens rounded up to 16, and one more, times BLOCK_ROWS) int32;
    overwritten.
    """
    packed, stride, values, gap, tokens = matrix.packed, matrix.cols // 4, flattened(x.codes), x.codes.shape[1], x.tokens
    if MATRIX and (tokens > FEW or (last - first) % 4 != 0):
        multiply_staged(matrix, x, to, tile, sums, first, last)
        return
    length, groups = (stride + WIDTH - 1) // WIDTH * WIDTH, (tokens + TOKENS - 1) // TOKENS
    advance = (TILE_ROWS * stride + length * groups - 1) // (length * groups)  # so that the next tile's bytes are there in time
    for i in range(TILE_ROWS):
        sums[i] = 0  # what all sums begin with
    for row in range(first, last, TILE_ROWS):
        rows, at = min(TILE_ROWS, last - row), matrix.offset + row * stride
        if MATRIX or (tokens <= FEW and rows % 4 == 0):
            packed_sums(packed, at, stride, rows, x.codes, tokens, sums)
            scale_sums(sums, TILE_ROWS, x, matrix.scale, 0, tokens, to, row, rows)
            continue
        ask = at + rows * stride
        for begin in range(0, length, BLOCK):
            words = min(BLOCK, length - begin)
            unpack_rows(packed, at, stride, rows, begin, begin + words, tile)
            before, step = (0, 0) if begin == 0 else (TILE_ROWS, TILE_ROWS)
            for t in range(0, tokens, TOKENS):
                codes, start = Codes(values, t * gap + 4 * begin, gap), TILE_ROWS + (t * TILE_ROWS if length > BLOCK else 0)
                until, done, ahead = min(t + TOKENS, tokens), begin + words == length, Ahead(packed, ask, advance)
                if done:
                    ask_for(to.out, t, until, to.place + row, rows)
                if TOKENS == 8 and t + 4 < tokens:
                    sums_8(tile, words, codes, sums, before + t * step, step, start, ahead)
                else:
                    sums_4(tile, words, codes, sums, before + t * step, step, start, ahead)
                ask += words * advance
                if done:
                    scale_sums(sums, start, x, matrix.scale, t, until, to, row, rows)
