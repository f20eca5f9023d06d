"""Ternary rows with a float16 scale a group, times int8 activations with a scale a group. Twin: naive/grouped.py. Layout: group_rows.py.

Of a row and a token, each unit of weights (all with one scale s, and activations with one step p) gives an integer, and

    y = sum over units, ascending, each a fused multiply-add, of (sum of code * q - sum of q) * (s * p)

from 0 on. Rows stand in lanes, so a unit's integer is whole in one lane, and every path adds the same floats in the same order: one token,
few, many, whichever threads and chunks.

    one token     PANELS panels at once, quarters of the rows: the words are read once, in four streams
    few tokens    fields of two panels meet all tokens while they are in registers
    many tokens   TILE_ROWS rows are unpacked to L1, a block of K at a time, as in tile.py
"""

import numpy as np

from .arrays import BLOCK_ROWS, TILE_BYTES
from .barrier import barrier
from .folds import perhaps_fold
from .group_rows import LARGEST_UNIT, LINE, ROWS, WORD
from .jit import inlined, kernel, separate
from .norm import rms_norm
from .quantise import largest_magnitude
from .simd import floats, group_sums, selected, tiles, vectors
from .tile import ask_for

WIDTH, LANES, PARTS = selected.WIDTH, group_sums.LANES, group_sums.PARTS
PANELS = 4 if WIDTH == 64 else 2 if selected.TILE_BLOCKS == 3 else 1  # of one token
SPREAD = 4 if selected.UNSHIFTED else 1
SOME = 4 if selected.TILE_BLOCKS == 3 else 2  # tokens that meet packed panels at once
MORE = 8 if selected.TILE_TOKENS == 8 else SOME  # the same where there are more of them
FEW = 3 * MORE  # tokens that meet packed panels; more are worth unpacking rows to a tile (docs/log.md#kernels-rows-scale-group)
FEW_PANELS = 2 if WIDTH == 64 else 1
TILE_PANELS = BLOCK_ROWS // ROWS
BLOCKS, TOKENS = selected.TILE_BLOCKS, selected.TILE_TOKENS
PASSES = TILE_PANELS * PARTS // BLOCKS  # over a tile, each of BLOCKS registers of rows
BLOCK = TILE_BYTES // BLOCK_ROWS  # weights of a row that are unpacked at a time
PREFETCH = 3072  # bytes ahead in each stream (docs/log.md#panel-prefetch)
ZERO, FOUR, SIXTEEN, UNIT, WRITE = np.int64(0), np.int64(4), np.int64(ROWS), np.float32(1.0), np.bool_(False)
begin_1, fold_1 = group_sums.operations(PANELS * PARTS, 1, SPREAD)
begin_some, fold_some = group_sums.operations(FEW_PANELS * PARTS, SOME)
begin_more, fold_more = group_sums.operations(FEW_PANELS * PARTS, MORE)
begin_tile, fold_tile = group_sums.operations(BLOCKS, TOKENS)
add_1, add_some, add_more = (
    group_sums.packed_step(PANELS, 1, SPREAD),
    group_sums.packed_step(FEW_PANELS, SOME),
    group_sums.packed_step(FEW_PANELS, MORE),
)
_, add_tile, _ = tiles.operations(BLOCKS, TOKENS)
load, store = selected.load, selected.store
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
load_floats, mul_floats, add_floats, splat_float = group_sums.load_floats, tiles.mul_floats, tiles.add_floats, tiles.splat_float
load_some, store_some = tiles.load_some, tiles.store_some
load_f16, load_f32, store_f32, splat, mul = (
    selected.load_f16,
    floats.load_f32,
    floats.store_f32,
    floats.splat_f32,
    floats.mul_f32,
)
nearest, nearest_f32, sub, store_bytes = floats.nearest_i32, floats.nearest_f32, floats.sub_f32, floats.store_low_bytes
add_i32, zero_i32, total_i32, turned = floats.add_i32, floats.zero_i32, floats.total_i32, group_sums.turned
flattened, prefetch, prefetch_to_l2 = vectors.flattened, vectors.prefetch, vectors.prefetch_to_l2


@kernel
def unit_size(groups):
    """group_rows.unit_of, for kernels."""
    unit = min(groups.weights, LARGEST_UNIT)
    return unit if groups.activations == 0 else min(unit, groups.activations)


@inlined
def _scale_bytes(cols, group):
    """group_rows.scale_bytes, for kernels."""
    return (cols // group * ROWS * 2 + LINE - 1) // LINE * LINE


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
                minus[row, start // unit] = -total_i32(sums)
                steps[row, start // unit] = np.float32(1.0) / before


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


@kernel
def _sums_1(packed, at, step, cols, groups, codes, minus, steps, totals, scales):
    """totals[p * ROWS + i] += products of row i of the panel at byte at + p * step with one token, codes (cols,)."""
    unit, group = unit_size(groups), groups.weights
    words, size = at + _scale_bytes(cols, group), unit // WORD * LINE + unit * 2 * ROWS // group
    units, numbers = flattened(minus), flattened(steps)
    for u in range(cols // unit):
        _unit_scales(packed, at, step, PANELS, u, unit, group, scales)
        sums, ahead = begin_1(units, u, 0), at + u * size + PREFETCH
        for k in range(u * unit, u * unit + unit, WORD):
            _ask(packed, ahead, step, PANELS)
            ahead += LINE
            sums = add_1(sums, packed, words + k // WORD * LINE, step, codes, k, 0)
        _ask(packed, ahead, step, PANELS)  # a unit's words are whole lines, its scales half of one
        fold_1(sums, units, numbers, u, 0, scales, 0, totals, 0, 0)


@kernel
def _sums_some(packed, at, step, cols, groups, codes, minus, steps, totals, scales):
    """As _sums_1, of FEW_PANELS panels with the first SOME rows of codes; totals[t * BLOCK_ROWS + p * ROWS + i]."""
    unit, group = unit_size(groups), groups.weights
    words, size, gap, line = at + _scale_bytes(cols, group), unit // WORD * LINE + unit * 2 * ROWS // group, minus.shape[1], codes.shape[1]
    units, numbers, values = flattened(minus), flattened(steps), flattened(codes)
    for u in range(cols // unit):
        _unit_scales(packed, at, step, FEW_PANELS, u, unit, group, scales)
        sums, ahead = begin_some(units, u, gap), at + u * size + PREFETCH
        for k in range(u * unit, u * unit + unit, WORD):
            _ask(packed, ahead, step, FEW_PANELS)
            ahead += LINE
            sums = add_some(sums, packed, words + k // WORD * LINE, step, values, k, line)
        _ask(packed, ahead, step, FEW_PANELS)  # a unit's words are whole lines, its scales half of one
        fold_some(sums, units, numbers, u, gap, scales, 0, totals, 0, BLOCK_ROWS)


@kernel
def _sums_more(packed, at, step, cols, groups, codes, minus, steps, totals, scales):
    """As _sums_some, with MORE tokens, where there are registers for them."""
    unit, group = unit_size(groups), groups.weights
    words, size, gap, line = at + _scale_bytes(cols, group), unit // WORD * LINE + unit * 2 * ROWS // group, minus.shape[1], codes.shape[1]
    units, numbers, values = flattened(minus), flattened(steps), flattened(codes)
    for u in range(cols // unit):
        _unit_scales(packed, at, step, FEW_PANELS, u, unit, group, scales)
        sums, ahead = begin_more(units, u, gap), at + u * size + PREFETCH
        for k in range(u * unit, u * unit + unit, WORD):
            sums = add_more(sums, packed, words + k // WORD * LINE, step, values, k, line)
            _ask(packed, ahead, step, FEW_PANELS)  # before the step, LLVM would keep activations on the stack
            ahead += LINE
        _ask(packed, ahead, step, FEW_PANELS)  # a unit's words are whole lines, its scales half of one
        fold_more(sums, units, numbers, u, gap, scales, 0, totals, 0, BLOCK_ROWS)


@separate()
@kernel
def matmul_packed(packed, offset, cols, groups, codes, minus, steps, tokens, scale, out, place, add, totals, scales, first, last):
    """out[t, place + r] (+)= row r times token t, for first <= r < last, first a multiple of ROWS: of the matrix at byte `offset`.

    codes: (>= tokens, >= cols) int8, a row a token;  minus: (rows, units) int32;  steps: as
    many float32;  scale: of all, float32;  totals: (MORE * BLOCK_ROWS,) and scales: (BLOCK_ROWS + ROWS,) float32, overwritten.

    Panels are read in as many streams as meet the tokens at once, through equal parts of the matrix: neighbours would end too soon.
    """
    size, panels, streams = _scale_bytes(cols, groups.weights) + cols * (ROWS // 4), (last - first + ROWS - 1) // ROWS, FEW_PANELS
    values, line = flattened(out), out.shape[1]
    if tokens == 1:
        streams, line = PANELS, 0
    part = panels // streams
    for i in range(panels - part * (streams - 1)):
        panel, step, count = (i, part * size, streams) if i < part else (i + part * (streams - 1), 0, 1)
        at = offset + (first // ROWS + panel) * size
        for begin in range(0, tokens, MORE):
            some = min(MORE, tokens - begin)
            _clear(totals, max(PANELS * ROWS, MORE * BLOCK_ROWS))
            if tokens == 1:
                _sums_1(packed, at, step, cols, groups, codes[0], minus, steps, totals, scales)
            elif MORE > SOME and some > SOME:
                _sums_more(packed, at, step, cols, groups, codes[begin:], minus[begin:], steps[begin:], totals, scales)
            else:
                _sums_some(packed, at, step, cols, groups, codes[begin:], minus[begin:], steps[begin:], totals, scales)
            for p in range(count):
                r = first + (panel + p * part) * ROWS
                for t in range(some):
                    _finish(totals, t * BLOCK_ROWS + p * ROWS, min(ROWS, last - r), scale, values, (begin + t) * line + place + r, add)


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
                store(tile, place, field3(v))
                store(tile, place + BLOCKS * WIDTH, field2(v))
                store(tile, place + 2 * BLOCKS * WIDTH, field1(v))
                store(tile, place + 3 * BLOCKS * WIDTH, field0(v))
                place += 4 * BLOCKS * WIDTH


@kernel
def _tile_sums(tile, begin, end, first, unit, codes, minus, steps, t, totals, scales, packed, ask, advance):
    """totals += products of a pass over a tile with TOKENS tokens from t on. Meanwhile `advance` bytes a word come to L2, from ask on."""
    units, numbers, values, gap, line = flattened(minus), flattened(steps), flattened(codes), minus.shape[1], codes.shape[1]
    for u in range(begin // unit, end // unit):
        sums, tile_at = begin_tile(units, t * gap + u, gap), first * (TILE_BYTES // PASSES // BLOCKS // LANES)
        for k in range(u * unit, u * unit + unit, 4):
            prefetch_to_l2(packed, ask + (k - begin) * advance)
            sums = add_tile(sums, tile, tile_at + (k - begin) * (BLOCKS * LANES), values, t * line + k, line)
        scale_at = (u - begin // unit) * BLOCK_ROWS + first
        fold_tile(sums, units, numbers, t * gap + u, gap, scales, scale_at, totals, first, BLOCK_ROWS)


@separate()
@kernel
def matmul_tiles(packed, offset, cols, groups, codes, minus, steps, tokens, scale, out, place, add, tile, totals, scales, first, last):
    """As matmul_packed, for any number of tokens.

    Rows up to the next multiple of TOKENS are read too. tile: (TILE_BYTES,) uint8, totals: (tokens rounded up * BLOCK_ROWS,), scales:
    (8 * BLOCK_ROWS,) float32, overwritten.
    """
    unit, start = unit_size(groups), _scale_bytes(cols, groups.weights)
    size, values = start + cols * (ROWS // 4), flattened(out)
    steps_a_tile = (tokens + TOKENS - 1) // TOKENS * PASSES * cols // 4
    advance = (TILE_PANELS * size + steps_a_tile - 1) // steps_a_tile  # so that the next tile's bytes are there in time
    for row in range(first, last, BLOCK_ROWS):
        rows, at = min(BLOCK_ROWS, last - row), offset + row // ROWS * size
        panels = (rows + ROWS - 1) // ROWS
        ask = at + panels * size
        for begin in range(0, cols, BLOCK):
            end = min(begin + BLOCK, cols)
            _unpack(packed, at, size, panels, begin, end, start, tile)
            for u in range(begin // unit, end // unit):
                for p in range(TILE_PANELS):
                    scale_at = at + min(p, panels - 1) * size + u * unit // groups.weights * (2 * ROWS)
                    store_f32(scales, (u - begin // unit) * BLOCK_ROWS + p * ROWS, load_f16(packed, scale_at))
            for t in range(0, tokens, TOKENS):
                sums, until = totals[t * BLOCK_ROWS :], min(t + TOKENS, tokens)
                if begin == 0:
                    _clear(sums, TOKENS * BLOCK_ROWS)
                if end == cols:
                    ask_for(out, t, until, place + row, rows)
                for done in range(0, BLOCK_ROWS, BLOCKS * LANES):
                    _tile_sums(tile, begin, end, done, unit, codes, minus, steps, t, sums, scales, packed, ask, advance)
                    ask += (end - begin) // 4 * advance
                if end == cols:
                    for i in range(t, until):
                        _finish(sums, (i - t) * BLOCK_ROWS, rows, scale, values, i * out.shape[1] + place + row, add)


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
def _multiply(groups, packed, offset, cols, s, row, tokens, scale, out, place, accumulate, thread, first, last):
    """out[t, place + r] (+)= row r, first <= r < last, of a matrix times the tokens of Scratch s from row `row` on."""
    room, tile, totals, factors = s.groups, s.tile[thread], s.groups.totals[thread], s.groups.scales[thread]
    for digit in range(2 if len(s.fine_codes) else 1):
        codes, minus, steps = (s.fine_codes, room.fine_minus, room.fine_steps) if digit else (s.codes, room.minus, room.steps)
        codes, minus, steps, add = codes[row:], minus[row:], steps[row:], accumulate or digit > 0
        if tokens <= FEW:
            matmul_packed(packed, offset, cols, groups, codes, minus, steps, tokens, scale, out, place, add, totals, factors, first, last)
        else:
            matmul_tiles(
                packed, offset, cols, groups, codes, minus, steps, tokens, scale, out, place, add, tile, totals, factors, first, last
            )


@kernel
def project_groups(groups, w, s, layer, which, cols, out, place, accumulate, mine, first, last):
    """As step.project, of rows first <= r < last."""
    offset, scale = w.offsets[layer, which], w.scales[layer, which]
    row = mine.thread if mine.tokens == 1 else mine.begin
    out = out[mine.begin :]
    _multiply(groups, w.packed, offset, cols, s, row, mine.end - mine.begin, scale, out, place, accumulate, mine.thread, first, last)


@kernel
def logits_by_groups(groups, z, w, s, wanted, thread, threads, control):
    """This thread's part of the first `wanted` logits that s.wanted lists, of a head with groups. All of them, whatever `top` says.

    Rows whose logits stand beside each other in s.logits meet the head together.
    """
    digits, at, x = 2 if len(s.fine_codes) else 1, w.norm_offsets[z.layers, 0], s.normed[thread]
    first, last = (0, 1) if wanted == 1 else (wanted * thread // threads, wanted * (thread + 1) // threads)
    for i in range(first, last):
        row = thread if wanted == 1 else s.wanted[i, 2]
        rms_norm(s.x[s.wanted[i, 0]], w.norms, at, z.hidden, z.norm_eps, x)
        perhaps_fold(w.folds, z.layers, ZERO, x, z.hidden, x)
        fine = s.fine_codes[row] if digits == 2 else s.codes[row]
        quantise_groups(x, z.hidden, groups, digits, s.codes[row], fine, s.groups, row, s.residue[thread])
    if wanted > 1:
        barrier(control, threads)
    panels, begin = (z.vocab + ROWS - 1) // ROWS, 0
    first, last = panels * thread // threads * ROWS, min(panels * (thread + 1) // threads * ROWS, z.vocab)
    while begin < wanted:
        place, end = s.wanted[begin, 2], begin + 1
        while end < wanted and s.wanted[end, 2] == place + end - begin:
            end += 1
        row, start = thread if wanted == 1 else place, place * z.vocab
        _multiply(groups, w.head, w.head_offset[0], z.hidden, s, row, end - begin, UNIT, s.logits, start, WRITE, thread, first, last)
        begin = end
