"""A tile of unpacked ternary rows, and its sums with many tokens: the inner loops of prefill. Used by ternary.py.

Rows stand in lanes (simd/tiles.py): word k of the tile has the codes of TILE_ROWS rows at places 4 k to 4 k + 3 of kernel order, a lane a
row. So one load of four activations serves all rows, the sums of 3 registers of rows with 8 tokens (4 where there are 16 registers) stay in
registers through a block of K, and nothing is added across lanes. docs/log.md#tiles has the rates of other shapes.
"""

from . import isa
from .arrays import TILE_BYTES
from .jit import kernel
from .operands import Codes
from .simd import selected, tiles, vectors

WIDTH, LANES, BLOCKS, TOKENS = selected.WIDTH, tiles.LANES, selected.TILE_BLOCKS, selected.TILE_TOKENS
TILE_ROWS = BLOCKS * LANES
BLOCK = TILE_BYTES // (4 * TILE_ROWS) // WIDTH * WIDTH  # packed bytes of a row that are unpacked at a time
NEXT_PACKED = 8  # rows ahead that few tokens ask for; more are gone from L1 before they are read
L1_BYTES = 14 * WIDTH  # packed bytes of a row at a time, so that the activations of 8 tokens, 28 KiB, stay in L1
_FOLD = selected.STEPS_PER_FOLD
load_rows, store_codes = tiles.load_rows, tiles.store_codes
no_sums_4, add_step_4, add_to_4 = tiles.operations(BLOCKS, 4)
no_sums_8, add_step_8, add_to_8 = tiles.operations(BLOCKS, 8)
PACKED_ROWS = 4 if BLOCKS == 3 else 2  # that meet two tokens; those that meet eight are two
no_packed_2, add_packed_2, add_packed_2_to = tiles.packed_operations(PACKED_ROWS, 2)
no_packed_8, add_packed_8, add_packed_8_to = tiles.packed_operations(2, 8)
MATRIX = isa.chosen() == "amx"
load_words, sub_words, splat_word, to_floats = tiles.load_words, tiles.sub_words, tiles.splat_word, tiles.to_floats
load_some, store_some = tiles.load_some, tiles.store_some
store, add_of, mul, splat = tiles.store_floats, tiles.add_floats, tiles.mul_floats, tiles.splat_float
flattened, prefetch = vectors.flattened, vectors.prefetch
prefetch_to_l2, prefetch_to_write = vectors.prefetch_to_l2, vectors.prefetch_to_write


@kernel
def unpack_rows(packed, at, stride, rows, begin, end, tile):
    """Bytes begin .. end - 1 of `rows` packed rows of `stride` bytes, the first at byte `at` -> codes in a tile. Its other rows: anything.

    begin, end: whole registers; what is past the end of a row is 0.
    """
    for block in range((rows + LANES - 1) // LANES):
        first, count = at + block * LANES * stride, min(rows - block * LANES, LANES)
        for byte in range(begin, end, WIDTH):
            registers = load_rows(packed, first + byte, stride, count, stride - byte)
            store_codes(registers, tile, (byte - begin) * 4 * TILE_ROWS + block * WIDTH, BLOCKS * WIDTH)


@kernel
def sums_4(tile, words, codes, sums, before, step, place, ahead):
    """sums[place ...], TILE_ROWS a token = sums[before ...], step a token, + code sums of a tile of so many words with four tokens.

    codes, ahead: operands.py's.
    """
    start = 0
    while start < words:
        stop = min(start + _FOLD, words)
        registers = no_sums_4()
        for k in range(start, stop):
            prefetch_to_l2(ahead.packed, ahead.at + k * ahead.step)
            registers = add_step_4(registers, tile, k * (BLOCKS * WIDTH), codes.values, codes.first + 4 * k, codes.gap)
        add_to_4(registers, sums, before, step, place, TILE_ROWS)
        before, step, start = place, TILE_ROWS, stop


@kernel
def sums_8(tile, words, codes, sums, before, step, place, ahead):
    """As sums_4, with eight tokens: for sets with 32 registers, and sums that need no folding."""
    registers = no_sums_8()
    for k in range(words):
        prefetch_to_l2(ahead.packed, ahead.at + k * ahead.step)
        registers = add_step_8(registers, tile, k * (BLOCKS * WIDTH), codes.values, codes.first + 4 * k, codes.gap)
    add_to_8(registers, sums, before, step, place, TILE_ROWS)


@kernel
def _packed_sums_2(packed, at, stride, ahead, codes, sums, place):
    """Code sums of PACKED_ROWS packed rows with two tokens, added to sums[place ...], TILE_ROWS a token.

    codes: operands.Codes. As many bytes, `ahead` further on, are prefetched.
    """
    begin = 0
    while begin < stride:
        end, registers = min(begin + _FOLD // 4 * WIDTH, stride), no_packed_2()
        for byte in range(begin, end, WIDTH):
            for row in range(PACKED_ROWS):
                prefetch(packed, at + byte + row * stride + ahead)
            registers = add_packed_2(registers, packed, at + byte, stride - byte, stride, codes.values, codes.first + 4 * byte, codes.gap)
        add_packed_2_to(registers, sums, place, TILE_ROWS)
        begin = end


@kernel
def _packed_sums_8(packed, at, stride, begin, end, ahead, codes, sums, place):
    """As _packed_sums_2, of bytes begin .. end - 1 of two rows with eight tokens: for sets with 32 registers, and sums without folding."""
    registers = no_packed_8()
    for byte in range(begin, end, WIDTH):
        prefetch(packed, at + byte + ahead)
        prefetch(packed, at + byte + stride + ahead)
        registers = add_packed_8(registers, packed, at + byte, stride - byte, stride, codes.values, codes.first + 4 * byte, codes.gap)
    add_packed_8_to(registers, sums, place, TILE_ROWS)


@kernel
def packed_sums(packed, at, stride, rows, codes, tokens, sums):
    """sums[(t + 1) * TILE_ROWS + i] = code sum of row i, the first at byte `at`, with token t, for i < rows <= TILE_ROWS, rows % 4 = 0."""
    values, gap, ahead = flattened(codes), codes.shape[1], NEXT_PACKED * stride
    for i in range(TILE_ROWS, ((tokens + 3) // 4 * 4 + 1) * TILE_ROWS):
        sums[i] = 0
    if TOKENS == 8 and not MATRIX and tokens > 4:
        for begin in range(0, stride, L1_BYTES):
            end = min(begin + L1_BYTES, stride)
            for i in range(0, rows, 2):
                _packed_sums_8(packed, at + i * stride, stride, begin, end, ahead, Codes(values, 0 * gap, gap), sums, TILE_ROWS + i)
        return
    for i in range(0, rows, PACKED_ROWS):
        for t in range(0, tokens, 2):
            _packed_sums_2(packed, at + i * stride, stride, ahead, Codes(values, t * gap, gap), sums, (t + 1) * TILE_ROWS + i)


@kernel
def scale_sums(sums, at, x, scale, begin, end, to, first, rows):
    """out[t, place + first + i] (+)= (sums[at + i] - code sum of t) * (scale / factor of t) for i < rows and t from begin to end - 1.

    x, to: operands.py's Inputs, Destination; at: of token `begin`; the next ones' sums are TILE_ROWS further on each.
    """
    values, line, place = flattened(to.out), to.out.shape[1], to.place + first
    for t in range(begin, end):
        row, less, factor = t * line + place, splat_word(x.sums[t]), splat(scale / x.factors[t])
        for i in range(0, rows, LANES):
            count = min(LANES, rows - i)
            y = mul(to_floats(sub_words(load_words(sums, at + i), less)), factor)
            y = add_of(load_some(values, row + i, count if to.add else 0), y)
            if count == LANES:
                store(values, row + i, y)
            else:
                store_some(values, row + i, y, count)
        at += TILE_ROWS


@kernel
def ask_for(out, begin, end, place, rows):
    """Bring out[begin : end, place : place + rows] to L1: stores to memory that no cache has hold up what comes after them."""
    values = flattened(out)
    for t in range(begin, end):
        for i in range(place, place + rows, 16):
            prefetch_to_write(values, t * out.shape[1] + i)
