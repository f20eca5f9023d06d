"""A tile of unpacked ternary rows, and its sums with many tokens: the inner loops of prefill. Used by ternary.py.

Rows stand in lanes (simd/tiles.py): word k of the tile has the codes of TILE_ROWS rows at places 4 k to 4 k + 3 of kernel order, a lane a
row. So one load of four activations serves all rows, the sums of 3 registers of rows with 8 tokens (4 where there are 16 registers) stay in
registers through a block of K, and nothing is added across lanes. docs/log.md has the rates of other shapes.
"""

import numpy as np

from .arrays import TILE_BYTES
from .jit import kernel
from .simd import selected, tiles, vectors

WIDTH, LANES, BLOCKS, TOKENS = selected.WIDTH, tiles.LANES, selected.TILE_BLOCKS, selected.TILE_TOKENS
TILE_ROWS = BLOCKS * LANES
BLOCK = TILE_BYTES // (4 * TILE_ROWS) // WIDTH * WIDTH  # packed bytes of a row that are unpacked at a time
_FOLD = selected.STEPS_PER_FOLD
load_rows, load_half_rows, store_codes = tiles.load_rows, tiles.load_half_rows, tiles.store_codes
no_sums_4, add_step_4, add_to_4 = tiles.operations(BLOCKS, 4)
no_sums_8, add_step_8, add_to_8 = tiles.operations(BLOCKS, 8)
load_words, sub_words, splat_word, to_floats = tiles.load_words, tiles.sub_words, tiles.splat_word, tiles.to_floats
load, store, add_of, mul, splat = tiles.load_floats, tiles.store_floats, tiles.add_floats, tiles.mul_floats, tiles.splat_float
prefetch, prefetch_to_l2 = vectors.prefetch, vectors.prefetch_to_l2


@kernel
def unpack_rows(packed, at, stride, rows, begin, end, tile):  # type: ignore[no-untyped-def]
    """Bytes begin .. end - 1 of `rows` packed rows of `stride` bytes, the first at byte `at` -> codes in a tile. Its other rows: anything.

    begin, end: whole registers; what is past the end of a row is 0.
    """
    for block in range((rows + LANES - 1) // LANES):
        first, count = at + block * LANES * stride, min(rows - block * LANES, LANES)
        for byte in range(begin, end, WIDTH):
            if byte + WIDTH <= stride:
                registers = load_rows(packed, first + byte, stride, count)
            else:
                registers = load_half_rows(packed, first + byte, stride, count)
            store_codes(registers, tile, (byte - begin) * 4 * TILE_ROWS + block * WIDTH, BLOCKS * WIDTH)


@kernel
def sums_4(tile, words, values, first, gap, sums, before, step, place, packed, ask, advance):  # type: ignore[no-untyped-def]
    """sums[place ...], TILE_ROWS a token = sums[before ...], step a token, + code sums of a tile of so many words with four tokens.

    values: (bytes,) int8, of which values[first + t * gap ...] are those of token t. Meanwhile `advance` bytes a word are brought to L2,
    from packed[ask] on.
    """
    start = 0
    while start < words:
        stop = min(start + _FOLD, words)
        registers = no_sums_4()
        for k in range(start, stop):
            prefetch_to_l2(packed, ask + k * advance)
            registers = add_step_4(registers, tile, k * (BLOCKS * WIDTH), values, first + 4 * k, gap)
        add_to_4(registers, sums, before, step, place, TILE_ROWS)
        before, step, start = place, TILE_ROWS, stop


@kernel
def sums_8(tile, words, values, first, gap, sums, before, step, place, packed, ask, advance):  # type: ignore[no-untyped-def]
    """As sums_4, with eight tokens: for sets with 32 registers, and sums that need no folding."""
    registers = no_sums_8()
    for k in range(words):
        prefetch_to_l2(packed, ask + k * advance)
        registers = add_step_8(registers, tile, k * (BLOCKS * WIDTH), values, first + 4 * k, gap)
    add_to_8(registers, sums, before, step, place, TILE_ROWS)


@kernel
def scale_sums(sums, at, code_sum, factor, out, place, rows, add):  # type: ignore[no-untyped-def]
    """out[place + i] (+)= (sums[at + i] - code_sum) * factor for i < rows."""
    less, factors, whole = splat_word(code_sum), splat(factor), rows // LANES * LANES
    for i in range(0, whole, LANES):
        y = mul(to_floats(sub_words(load_words(sums, at + i), less)), factors)
        store(out, place + i, add_of(load(out, place + i), y) if add else y)
    for i in range(whole, rows):
        y = np.float32(sums[at + i] - code_sum) * factor
        out[place + i] = out[place + i] + y if add else y


@kernel
def ask_for(out, place, rows):  # type: ignore[no-untyped-def]
    """Bring out[place : place + rows] to L1: stores to memory that no cache has hold up what comes after them."""
    for i in range(place, place + rows, 16):
        prefetch(out, i)
