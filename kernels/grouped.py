"""Ternary rows with a float16 scale a group, times int8 activations with a scale a group. Twin: naive/grouped.py. Layout: group_rows.py.

Of a row and a token, each unit of weights (all with one scale s, and activations with one step p) gives an integer, and

    y = sum over units, ascending, each a fused multiply-add, of (sum of code * q - sum of q) * (s * p)

from 0 on. Rows stand in lanes, so a unit's integer is whole in one lane, and every path adds the same floats in the same order: one token,
few, many, whichever threads and chunks.

    one token     PANELS panels at once, quarters of the rows: the words are read once, in four streams
    few tokens    fields of two panels meet all tokens while they are in registers
    many tokens   TILE_ROWS rows are unpacked to L1, a block of K at a time, as in tile.py; for AMX as weights, whose products are signed
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import BLOCK_ROWS, TILE_BYTES
from .barrier import barrier
from .folds import perhaps_fold
from .group_rows import LINE, ROWS, WORD, scale_bytes, unit_of
from .jit import inlined, kernel, separate
from .norm import rms_norm
from .operands import Ahead, Destination, Matrix
from .quantise import largest_magnitude
from .simd import floats, group_sums, selected, tiles, vectors
from .simd import matrix as amx
from .tile import MATRIX, ask_for

WIDTH, LANES, PARTS = selected.WIDTH, group_sums.LANES, group_sums.PARTS
PANELS = 4 if WIDTH == 64 else 2 if selected.TILE_BLOCKS == 3 else 1  # of one token
SPREAD = 4 if selected.UNSHIFTED else 1
SOME = 4 if selected.TILE_BLOCKS == 3 else 2  # tokens that meet packed panels at once
MORE = 8 if selected.TILE_TOKENS == 8 else SOME  # the same where there are more of them
# Tokens that meet packed panels; more are worth unpacking rows to a tile (docs/log.md#kernels-rows-scale-group, #amx-groups).
FEW = MORE if MATRIX else 3 * MORE
FEW_PANELS = 2 if WIDTH == 64 else 1
TILE_PANELS = BLOCK_ROWS // ROWS
BLOCKS, TOKENS = selected.TILE_BLOCKS, selected.TILE_TOKENS
PASSES = TILE_PANELS * PARTS // BLOCKS  # over a tile, each of BLOCKS registers of rows
BLOCK = TILE_BYTES // BLOCK_ROWS // (2 if MATRIX else 1)  # weights of a row that are unpacked at a time
PREFETCH = 3072  # bytes ahead in each stream (docs/log.md#panel-prefetch)
ZERO, FOUR, SIXTEEN, GAP, UNIT = np.int64(0), np.int64(4), np.int64(ROWS), np.int64(BLOCK_ROWS), np.float32(1.0)
begin_tile, fold_tile = group_sums.operations(BLOCKS, TOKENS)
_, add_tile, _ = tiles.operations(BLOCKS, TOKENS)
begin_tiles, clear_tiles, end_tiles = amx.begin, amx.cleared(BLOCKS), amx.end
add_tiles, store_tiles = amx.products(BLOCKS), amx.stored(BLOCKS)
weights, fma, load_words, to_floats, store_floats = group_sums.weights, selected.fma, tiles.load_words, tiles.to_floats, tiles.store_floats
AT_ONCE = amx.ROWS if MATRIX else TOKENS  # tokens that a tile meets
UNIT_SUMS = amx.ROWS * BLOCK_ROWS  # that AMX stores
load, store = selected.load, selected.store
unit_size, _scale_bytes = kernel(unit_of), kernel(scale_bytes)
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
load_floats, mul_floats, add_floats, splat_float = group_sums.load_floats, tiles.mul_floats, tiles.add_floats, tiles.splat_float
load_some, store_some = tiles.load_some, tiles.store_some
load_f16, load_f32, store_f32 = selected.load_f16, floats.load_f32, floats.store_f32
splat, mul = floats.splat_f32, floats.mul_f32
nearest, nearest_f32, sub, store_bytes = floats.nearest_i32, floats.nearest_f32, floats.sub_f32, floats.store_low_bytes
add_i32, zero_i32, total_i32, turned = floats.add_i32, floats.zero_i32, floats.total_i32, group_sums.turned
flattened, prefetch, prefetch_to_l2 = vectors.flattened, vectors.prefetch, vectors.prefetch_to_l2


class Room(NamedTuple):
    """What one thread's products overwrite."""

    tile: NDArray[np.uint8]  # (>= TILE_BYTES,) unpacked rows
    sums: NDArray[np.int32]  # (>= UNIT_SUMS,) of a unit, as AMX stores them
    totals: NDArray[np.float32]  # (>= tokens rounded up * BLOCK_ROWS,) so far
    scales: NDArray[np.float32]  # (>= 8 * BLOCK_ROWS,) of a tile's rows


class GroupInputs(NamedTuple):
    """Activations as `quantise_groups` leaves them. Kernels read up to a multiple of the tokens that they take at once."""

    codes: NDArray[np.int8]  # (>= tokens, >= cols) as they meet words
    minus: NDArray[np.int32]  # (>= tokens, units) minus the sum of a unit's codes
    steps: NDArray[np.float32]  # (>= tokens, units)
    tokens: int


@separate()
@kernel
def quantise_groups(x, cols, groups, digits, codes, fine_codes, s, row, rest):
    """x: (>= cols,) float32 -> digits of int8 codes as they meet words, (cols,) each, and row `row` of GroupScratch s.

    rest: (>= cols,) float32, overwritten where there are two digits: what the first loses when it is rounded.
    """
    unit = unit_size(groups)
    group = cols if groups.activations == 0 else groups.activations
    for first in range(0, cols, group):
        last, before = min(first + group, cols), np.float32(1.0)
        for digit in range(digits):
            source, out = (rest, fine_codes) if digit else (x, codes)
            minus, steps = (s.fine_minus, s.fine_steps) if digit else (s.minus, s.steps)
            factor = np.float32(127.0) / largest_magnitude(source[first:], last - first, np.float32(1e-5))
            before *= factor
            for start in range(first, last, unit):
                sums = zero_i32()
                for i in range(start, start + unit, 16):
                    scaled = mul(load_f32(source, i), splat(factor))
                    q = nearest(scaled)
                    sums = add_i32(sums, q)
                    store_bytes(out, i, turned(q))
                    if digits > 1:
                        store_f32(rest, i, sub(scaled, nearest_f32(scaled)))
                minus[row, start // unit] = -total_i32(sums) if before > 0 else 0  # infinite inputs: no code of theirs is what was added
                steps[row, start // unit] = np.float32(1.0) / before


@inlined
def _from(x, t):
    """GroupInputs from token t on."""
    return GroupInputs(x.codes[t:], x.minus[t:], x.steps[t:], x.tokens - t)


@inlined
def _clear(totals, count):
    for i in range(count):
        totals[i] = np.float32(0.0)


@kernel
def _finish(totals, at, rows, scale, out, place, add):
    """out[place + i] (+)= totals[at + i] * scale for i < rows."""
    for i in range(0, rows, LANES):
        count, y = min(LANES, rows - i), mul_floats(load_floats(totals, at + i), splat_float(scale))
        y = add_floats(load_some(out, place + i, count if add else 0), y)
        store_some(out, place + i, y, count)


@inlined
def _unit_scales(packed, at, step, panels, u, unit, group, scales):
    """scales = those of unit u of the rows of some panels, float32."""
    for p in range(panels):
        store_f32(scales, p * ROWS, load_f16(packed, at + p * step + u * unit // group * (2 * ROWS)))


@inlined
def _ask(packed, at, step, panels):
    """Prefetch a line of each panel. One by one between words: many at once fill the core's buffers, and what comes next waits."""
    for p in range(panels):
        prefetch(packed, at + p * step)


def _packed_sums(panels: int, tokens: int, spread: int = 1, ask_late: bool = False) -> Any:
    """`sums(matrix, at, step, groups, x, totals, scales)`: totals[t * BLOCK_ROWS + p * ROWS + i] += products of row i of the panel at byte
    at + p * step with token t, for so many panels and the first tokens of x.
    """
    (begin, fold), add = group_sums.operations(panels * PARTS, tokens, spread), group_sums.packed_step(panels, tokens, spread)

    @kernel
    def sums_of(matrix, at, step, groups, x, totals, scales):
        unit, group, packed, gap, line = unit_size(groups), groups.weights, matrix.packed, x.minus.shape[1], x.codes.shape[1]
        words, size = at + _scale_bytes(matrix.cols, group), unit // WORD * LINE + unit * 2 * ROWS // group
        units, numbers, codes, to = flattened(x.minus), flattened(x.steps), flattened(x.codes), (totals, ZERO, GAP)
        for u in range(matrix.cols // unit):
            _unit_scales(packed, at, step, panels, u, unit, group, scales)
            sums, ahead = begin(units, u, gap), at + u * size + PREFETCH
            for k in range(u * unit, u * unit + unit, WORD):
                if not ask_late:
                    _ask(packed, ahead, step, panels)
                sums = add(sums, packed, words + k // WORD * LINE, step, codes, k, line)
                if ask_late:
                    _ask(packed, ahead, step, panels)
                ahead += LINE
            _ask(packed, ahead, step, panels)  # a unit's words are whole lines, its scales half of one
            fold(sums, units, numbers, u, gap, scales, 0, to)

    return sums_of


_sums_1, _sums_some = _packed_sums(PANELS, 1, SPREAD), _packed_sums(FEW_PANELS, SOME)
_sums_more = _packed_sums(FEW_PANELS, MORE, ask_late=True)  # before the step, LLVM would keep activations on the stack


@separate()
@kernel
def matmul_packed(matrix, groups, x, to, room, first, last):
    """out[t, place + r] (+)= row r times token t, for first <= r < last, first a multiple of ROWS. to: operands.Destination.

    Panels are read in as many streams as meet the tokens at once, through equal parts of the matrix: neighbours would end too soon.
    """
    size, panels = _scale_bytes(matrix.cols, groups.weights) + matrix.cols * (ROWS // 4), (last - first + ROWS - 1) // ROWS
    values, line, streams, tokens = flattened(to.out), to.out.shape[1], FEW_PANELS, x.tokens
    totals, scales = room.totals, room.scales
    if tokens == 1:
        streams, line = PANELS, 0
    part = panels // streams
    for i in range(panels - part * (streams - 1)):
        panel, step, count = (i, part * size, streams) if i < part else (i + part * (streams - 1), 0, 1)
        at = matrix.offset + (first // ROWS + panel) * size
        for begin in range(0, tokens, MORE):
            some = min(MORE, tokens - begin)
            _clear(totals, max(PANELS * ROWS, MORE * BLOCK_ROWS))
            if tokens == 1:
                _sums_1(matrix, at, step, groups, x, totals, scales)
            elif MORE > SOME and some > SOME:
                _sums_more(matrix, at, step, groups, _from(x, begin), totals, scales)
            else:
                _sums_some(matrix, at, step, groups, _from(x, begin), totals, scales)
            for p in range(count):
                r = first + (panel + p * part) * ROWS
                for t in range(some):
                    place = (begin + t) * line + to.place + r
                    _finish(totals, t * BLOCK_ROWS + p * ROWS, min(ROWS, last - r), matrix.scale, values, place, to.add)


@kernel
def _unpack(packed, at, size, panels, begin, end, start, tile):
    """Weights begin .. end - 1 of the rows of some panels -> codes in a tile as tile.py has them, PASSES parts of BLOCKS registers each.

    at: the first panel's byte, size: bytes of one, start: of its scales. Missing panels are the last again.
    """
    for p in range(TILE_PANELS):
        source = at + min(p, panels - 1) * size + start
        for part in range(PARTS):
            block = p * PARTS + part
            place = block // BLOCKS * (TILE_BYTES // PASSES) + block % BLOCKS * WIDTH
            for k in range(begin, end, WORD):
                v = load(packed, source + k // WORD * LINE + part * WIDTH)
                for codes in (field3(v), field2(v), field1(v), field0(v)):
                    store(tile, place, weights(codes) if MATRIX else codes)
                    place += BLOCKS * WIDTH


@kernel
def _tile_sums(tile, span, first, unit, x, t, totals, scales, ahead):
    """totals += products of a pass over a tile, which has weights span[0] <= k < span[1], with TOKENS tokens from t on."""
    units, numbers, values, gap, line = flattened(x.minus), flattened(x.steps), flattened(x.codes), x.minus.shape[1], x.codes.shape[1]
    begin, end = span
    start = begin // unit
    for i in range((end - begin) // unit):
        u = start + i
        sums, tile_at = begin_tile(units, t * gap + u, gap), first * (TILE_BYTES // PASSES // BLOCKS // LANES)
        for k in range(u * unit, u * unit + unit, 4):
            prefetch_to_l2(ahead.packed, ahead.at + (k - begin) * ahead.step)
            sums = add_tile(sums, tile, tile_at + (k - begin) * (BLOCKS * LANES), values, t * line + k, line)
        fold_tile(sums, units, numbers, t * gap + u, gap, scales, i * BLOCK_ROWS + first, (totals, first, GAP))


@kernel
def _add_unit(sums, steps, at, gap, scales, scale_at, totals):
    """totals += stored sums of 16 tokens with a tile's rows, times their scales and steps."""
    a, b, c = load_floats(scales, scale_at), load_floats(scales, scale_at + 16), load_floats(scales, scale_at + 32)
    for i in range(amx.ROWS):
        step, j = splat_float(steps[at + i * gap]), i * BLOCK_ROWS
        store_floats(totals, j, fma(to_floats(load_words(sums, j)), mul_floats(a, step), load_floats(totals, j)))
        j += 16
        store_floats(totals, j, fma(to_floats(load_words(sums, j)), mul_floats(b, step), load_floats(totals, j)))
        j += 16
        store_floats(totals, j, fma(to_floats(load_words(sums, j)), mul_floats(c, step), load_floats(totals, j)))


@kernel
def _tile_sums_16(span, unit, x, t, room, totals, ahead):
    """As _tile_sums, of all rows of the tile with 16 tokens, by AMX. A unit's sums are stored when those before it have been added: stores
    that wait for products fill the core's queue.
    """
    steps, values, gap, line, begin = flattened(x.steps), flattened(x.codes), x.steps.shape[1], x.codes.shape[1], span[0]
    units = (span[1] - begin) // unit
    for u in range(units + 1):
        if u < units:
            clear_tiles()
            for k in range(u * unit, u * unit + unit, amx.BYTES):
                for ask in range(0, amx.WORDS * ahead.step, LINE):
                    prefetch_to_l2(ahead.packed, ahead.at + k // 4 * ahead.step + ask)
                add_tiles(room.tile, k * BLOCK_ROWS, values, t * line + begin + k, line)
        if u > 0:
            _add_unit(room.sums, steps, t * gap + begin // unit + u - 1, gap, room.scales, (u - 1) * BLOCK_ROWS, totals)
        if u < units:
            store_tiles(room.sums, 0, BLOCK_ROWS)


@kernel
def _fill(matrix, at, size, panels, groups, span, room):
    """Weights span[0] <= k < span[1] of some panels, and their scales, to where a tile is."""
    packed, unit, (begin, end) = matrix.packed, unit_size(groups), span
    _unpack(packed, at, size, panels, begin, end, _scale_bytes(matrix.cols, groups.weights), room.tile)
    for u in range(begin // unit, end // unit):
        for p in range(TILE_PANELS):
            scale_at = at + min(p, panels - 1) * size + u * unit // groups.weights * (2 * ROWS)
            store_f32(room.scales, (u - begin // unit) * BLOCK_ROWS + p * ROWS, load_f16(packed, scale_at))


@separate()
@kernel
def matmul_tiles(matrix, groups, x, to, room, first, last):
    """As matmul_packed, for any number of tokens."""
    unit, packed, cols, tokens = unit_size(groups), matrix.packed, matrix.cols, x.tokens
    values, line, size = flattened(to.out), to.out.shape[1], _scale_bytes(cols, groups.weights) + cols * (ROWS // 4)
    steps_a_tile = (tokens + AT_ONCE - 1) // AT_ONCE * PASSES * cols // 4
    advance = (TILE_PANELS * size + steps_a_tile - 1) // steps_a_tile  # so that the next tile's bytes are there in time
    if MATRIX:
        begin_tiles()
    for row in range(first, last, BLOCK_ROWS):
        rows, at = min(BLOCK_ROWS, last - row), matrix.offset + row // ROWS * size
        panels = (rows + ROWS - 1) // ROWS
        ask = at + panels * size
        for begin in range(0, cols, BLOCK):
            end = min(begin + BLOCK, cols)
            _fill(matrix, at, size, panels, groups, (begin, end), room)
            for t in range(0, tokens, AT_ONCE):
                totals, until = room.totals[t * BLOCK_ROWS :], min(t + AT_ONCE, tokens)
                if begin == 0:
                    _clear(totals, AT_ONCE * BLOCK_ROWS)
                if end == cols:
                    ask_for(to.out, t, until, to.place + row, rows)
                for done in range(PASSES):
                    ahead = Ahead(packed, ask, advance)
                    if MATRIX:
                        _tile_sums_16((begin, end), unit, x, t, room, totals, ahead)
                    else:
                        _tile_sums(room.tile, (begin, end), done * BLOCKS * LANES, unit, x, t, totals, room.scales, ahead)
                    ask += (end - begin) // 4 * advance
                if end == cols:
                    for i in range(t, until):
                        _finish(totals, (i - t) * BLOCK_ROWS, rows, matrix.scale, values, i * line + to.place + row, to.add)
    if MATRIX:
        end_tiles()


@inlined
def row_unit(groups):
    """Threads share rows of projections in so many at a time. groups: Weights.groups; None is known when code is compiled."""
    if groups is None:
        return FOUR
    return SIXTEEN


@kernel
def perhaps_quantise(groups, x, cols, s, row, thread):
    """Where there are groups, x: (>= cols,) float32 -> row `row` of Scratch s; False where there are none."""
    if groups is None:
        return False
    digits = 2 if len(s.fine_codes) else 1
    fine = s.fine_codes[row] if digits == 2 else s.codes[row]  # where there are no second digits, nothing is written there
    quantise_groups(x, cols, groups, digits, s.codes[row], fine, s.groups, row, s.residue[thread])
    return True


@kernel
def _multiply(groups, matrix, s, row, tokens, to, thread, first, last):
    """out[t, place + r] (+)= row r, first <= r < last, of a matrix times the tokens of Scratch s from row `row` on."""
    g = s.groups
    room = Room(s.tile[thread], s.block_sums[thread], g.totals[thread], g.scales[thread])
    for digit in range(2 if len(s.fine_codes) else 1):
        codes, minus, steps = (s.fine_codes, g.fine_minus, g.fine_steps) if digit else (s.codes, g.minus, g.steps)
        x, added = GroupInputs(codes[row:], minus[row:], steps[row:], tokens), Destination(to.out, to.place, to.add or digit > 0)
        if tokens <= FEW:
            matmul_packed(matrix, groups, x, added, room, first, last)
        else:
            matmul_tiles(matrix, groups, x, added, room, first, last)


@kernel
def project_groups(groups, w, s, product, to, mine, first, last):
    """As step.project, of rows first <= r < last."""
    layer, which = product.layer, product.which
    matrix = Matrix(w.packed, w.offsets[layer, which], product.cols, w.scales[layer, which])
    row, to = mine.thread if mine.tokens == 1 else mine.begin, Destination(to.out[mine.begin :], to.place, to.add)
    _multiply(groups, matrix, s, row, mine.end - mine.begin, to, mine.thread, first, last)


@kernel
def logits_by_groups(groups, z, w, s, wanted, thread, threads, control):
    """This thread's part of the first `wanted` logits that s.wanted lists, of a head with groups. All of them, whatever `top` says.

    Rows whose logits stand beside each other in s.logits meet the head together.
    """
    at, x = w.norm_offsets[z.layers, 0], s.normed[thread]
    first, last = (0, 1) if wanted == 1 else (wanted * thread // threads, wanted * (thread + 1) // threads)
    for i in range(first, last):
        row = thread if wanted == 1 else s.wanted[i, 2]
        rms_norm(s.x[s.wanted[i, 0]], w.norms, at, z.hidden, z.norm_eps, x)
        perhaps_fold(w.folds, z.layers, ZERO, x, z.hidden, x)
        perhaps_quantise(groups, x, z.hidden, s, row, thread)
    if wanted > 1:
        barrier(control, threads)
    panels, begin, head = (z.vocab + ROWS - 1) // ROWS, 0, Matrix(w.head, w.head_offset[0], z.hidden, UNIT)
    first, last = panels * thread // threads * ROWS, min(panels * (thread + 1) // threads * ROWS, z.vocab)
    while begin < wanted:
        place, end = s.wanted[begin, 2], begin + 1
        while end < wanted and s.wanted[end, 2] == place + end - begin:
            end += 1
        row, to = thread if wanted == 1 else place, Destination(s.logits, place * z.vocab, False)
        _multiply(groups, head, s, row, end - begin, to, thread, first, last)
        begin = end
