"""Ternary weights times four and more tokens by AMX: weights come from memory, are unpacked and multiplied at once. Used by ternary.py.

With 16 tokens each of these three takes about as long as the others, and one after the other they take three times that
(docs/log.md#stages). A stage is 64 packed bytes of TILE_ROWS rows: while one is multiplied, the next one is unpacked, and a later one asked
for (simd/matrix.py, `staged`). Weights are the left operand, so a row's bytes stay as they lie; activations are turned, once.

Up to 32 tokens have their sums in tiles through all of K. For more, rows are unpacked again, behind products.
"""

from .jit import kernel
from .simd import matrix as amx
from .simd import tiles, vectors
from .tile import TILE_ROWS as GAP
from .tile import ask_for, scale_sums

ROWS, BYTES, SIZE, PAGE = amx.ROWS, amx.BYTES, amx.SIZE, amx.PAGE
TILE_ROWS, TOKENS = 2 * ROWS, 2 * ROWS  # whose sums take four of eight tiles
TURNED = 2 * SIZE  # byte of the tile at which activations begin: in each page after weights
clear, store_sums = amx.cleared(4), amx.stored(4, PAGE, 1)
stage_16, stage_32 = amx.staged(1), amx.staged(2)
begin_tiles, end_tiles, turn_words, flattened = amx.begin, amx.end, tiles.turn_words, vectors.flattened


@kernel
def _turn(x, pages, tile):
    """Activations of 32 tokens to as many pages of the tile, those of the next 32 to the next ones."""
    values, gap = flattened(x.codes), x.codes.shape[1]
    for t in range(0, x.tokens, ROWS):
        for page in range(pages):
            place = (t // TOKENS * pages + page) * PAGE + TURNED + t % TOKENS * BYTES
            turn_words(values, t * gap + page * BYTES, gap, tile, place, BYTES)


@kernel
def multiply_staged(matrix, x, to, tile, sums, first, last):
    """As ternary.matmul_scaled. tile: (>= arrays.staged_bytes,) uint8."""
    if first >= last:
        return
    packed, stride, tokens, place = matrix.packed, matrix.cols // 4, x.tokens, 0
    stages, groups = (stride + BYTES - 1) // BYTES, (tokens + TOKENS - 1) // TOKENS
    begun = stages - 1
    _turn(x, 4 * stages, tile)
    begin_tiles()
    for row in range(first - TILE_ROWS, last, TILE_ROWS):
        rows, base = min(TILE_ROWS, last - row), matrix.offset + row * stride
        for group in range(groups if row >= first else 1):  # before the first rows one stage, of which nothing is kept
            t, until = group * TOKENS, min((group + 1) * TOKENS, tokens)
            clear()
            if row >= first:
                ask_for(to.out, t, until, to.place + row, rows)
            for number in range(begun, stages):
                after, byte = row, (number + 1) * BYTES
                if number + 1 == stages:
                    after, byte = row if row >= first and group + 1 < groups else min(row + TILE_ROWS, last - 1), 0
                ahead = base + TILE_ROWS * stride + (group * stages + number) * (TILE_ROWS * BYTES) // groups
                weights = matrix.offset + after * stride + byte, stride, last - after, stride - byte
                turned = (group * stages + number) * 4 * PAGE + TURNED
                if until - t > ROWS:
                    stage_32(packed, weights, ahead, tile, place, turned)
                else:
                    stage_16(packed, weights, ahead, tile, place, turned)
                place = SIZE - place
            begun = 0
            if row >= first:
                store_sums(tile, place, BYTES)  # where the last stage was
                for number in range(4 if until - t > ROWS else 2):
                    at = (1 + number // 2 * ROWS) * GAP + number % 2 * ROWS
                    turn_words(tile, place + number * PAGE, BYTES, sums, at, GAP)
                scale_sums(sums, GAP, x, matrix.scale, t, until, to, row, rows)
    end_tiles()
