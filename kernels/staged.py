"""Ternary weights times three and more tokens by AMX: weights come from memory, are unpacked and multiplied at once. Used by ternary.py.

With 16 tokens each of these three takes about as long as the others, and one after the other they take three times that
(docs/log.md#stages). A stage is 64 packed bytes of TILE_ROWS rows: while one is multiplied, the next one is unpacked, and a later one asked
for (simd/matrix.py, `staged`). Weights are the left operand, so a row's bytes stay as they lie; activations are turned, once.

Up to 32 tokens have their sums in tiles through all of K. For more, rows are unpacked again, behind products.
"""

from typing import Any, NamedTuple

import numpy as np

from .jit import kernel
from .simd import matrix as amx
from .simd import tiles, vectors
from .tile import TILE_ROWS as GAP
from .tile import ask_for, scale_sums

ROWS, BYTES, SIZE, PAGE, PART = amx.ROWS, amx.BYTES, amx.SIZE, amx.PAGE, amx.PART
TILE_ROWS, TOKENS = 2 * ROWS, 2 * ROWS  # whose sums take four of eight tiles
START = np.int64(0)  # of a NumPy type, so that what it is given to is compiled once
TURNED = 2 * SIZE  # byte of the tile at which activations begin: in each page after weights
clear, store_sums = amx.cleared(4), amx.stored(4, PAGE, 1)
stage_16, stage_32 = amx.staged(1), amx.staged(2)
begin_tiles, end_tiles, turn_words, flattened = amx.begin, amx.end, tiles.turn_words, vectors.flattened


class Rows(NamedTuple):
    """Weight rows, as `stage` takes them: row r begins at byte offset + r * stride, and is the last one where r + 1 is `end`."""

    weights: Any
    offset: int
    stride: int
    end: int


class Walk(NamedTuple):
    """A way through TILE_ROWS rows."""

    row: int  # the first one, of all rows
    after: int  # that of the rows which are unpacked last
    begun: int  # stages that are left out
    ahead: int  # byte that is asked for
    step: int  # bytes from a stage's to the next one's


class Columns(NamedTuple):
    """Activations of up to TOKENS tokens, turned, from byte `at` of the tile on."""

    at: int
    tokens: int


@kernel
def turn(codes, tokens, pages, tile):
    """Activations of TOKENS tokens to as many pages of the tile, those of the next to the next ones. codes: of 16, 32 ... tokens."""
    values, gap = flattened(codes), codes.shape[1]
    for t in range(0, tokens, ROWS):
        for page in range(pages):
            place = (t // TOKENS * pages + page) * PAGE + TURNED + t % TOKENS * BYTES
            turn_words(values, t * gap + page * BYTES, gap, tile, place, BYTES)


@kernel
def staged_sums(rows, walk, columns, tile, place, sums):
    """sums[(t + 1) * GAP + i] = sum of row walk.row + i with token t, for i < TILE_ROWS. What is past the last row or token: anything.

    place: where the first stage was unpacked from byte SIZE - place on; returns that of the next rows.
    """
    stages = (rows.stride + BYTES - 1) // BYTES
    clear()
    for number in range(walk.begun, stages):
        row, byte = (walk.row, (number + 1) * BYTES) if number + 1 < stages else (walk.after, 0)
        at, end, left = rows.offset + row * rows.stride + byte, rows.end - row, rows.stride - byte
        for part in range(4):
            done, half = min(part * PART, end - 1), part // 2 * 4 * PAGE + part % 2 * PART * BYTES
            given = at + done * rows.stride, rows.stride, end - done, left
            ahead = walk.ahead + number * walk.step + part * PART * BYTES
            unpacked, turned = SIZE - place + part * PAGE, columns.at + (4 * number + part) * PAGE
            if columns.tokens > ROWS:
                stage_32(rows.weights, given, ahead, tile, place + half, unpacked, turned)
            else:
                stage_16(rows.weights, given, ahead, tile, place + half, unpacked, turned)
        place = SIZE - place
    store_sums(tile, place, BYTES)  # where the last stage was
    for number in range(4 if columns.tokens > ROWS else 2):
        turn_words(tile, place + number * PAGE, BYTES, sums, (1 + number // 2 * ROWS) * GAP + number % 2 * ROWS, GAP)
    return place


@kernel
def multiply_staged(matrix, x, to, tile, sums, first, last):
    """As ternary.matmul_scaled. tile: (>= arrays.staged_bytes,) uint8."""
    if first >= last:
        return
    stride, tokens, place = matrix.cols // 4, x.tokens, START
    stages, groups = (stride + BYTES - 1) // BYTES, (tokens + TOKENS - 1) // TOKENS
    step, pages = TILE_ROWS * BYTES // groups, 4 * stages
    turn(x.codes, tokens, pages, tile)
    begin_tiles()
    for row in range(first - TILE_ROWS, last, TILE_ROWS):
        begun, rows = 0 if row >= first else stages - 1, min(TILE_ROWS, last - row)
        for group in range(groups if row >= first else 1):  # before the first rows one stage, of which nothing is kept
            t, until = group * TOKENS, min((group + 1) * TOKENS, tokens)
            after = row if group + 1 < groups and row >= first else min(row + TILE_ROWS, last - 1)
            ahead = matrix.offset + (row + TILE_ROWS) * stride + group * stages * step
            if row >= first:
                ask_for(to.out, t, until, to.place + row, rows)
            walk, columns = Walk(row, after, begun, ahead, step), Columns(group * pages * PAGE + TURNED, until - t)
            place = staged_sums(Rows(matrix.packed, matrix.offset, stride, last), walk, columns, tile, place, sums)
            if row >= first:
                scale_sums(sums, GAP, x, matrix.scale, t, until, to, row, rows)
    end_tiles()
