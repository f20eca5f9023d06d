"""Causal grouped-query attention over the KV cache, computed in float32, whatever the cache is. Twin: naive/attention.py.

scores_j = q . k_j / sqrt(head_dim);  p = softmax(scores);  out = sum_j p_j v_j, j over the positions that the query may see.

Positions are taken in blocks of BLOCK, which begin at position 0. Of a block, 64 keys, and later 64 columns of its values, are unpacked
into a panel of float32 that stays in the L1 cache, for all queries of the KV head that there are, four at a time. A block has a softmax of
its own, and blocks are added one after the other with the weights of their largest scores ("online softmax": Milakov and Gimelshein, arXiv
1805.02867; Dao et al., arXiv 2205.14135). So memory does not grow with the context.

A sum over elements or positions is one chain of multiply-adds in their order, and what a query does not see weighs exactly zero. So the
bits of a query's result depend on its position alone, not on which others came with it, nor on who computed which block.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .exponential import exp
from .jit import inlined, kernel, separate
from .kv_cache import BLOCK, UNIT
from .panels import copy_positions, first_is_whole, key_place, times_steps, unpack_keys, unpack_values, value_place
from .simd import floats, selected
from .simd.cached import few_queries, is_packed, keys_of, unit_size, values_of
from .simd.outer_products import ask, depths, moved, new_tile

load, store, zero, splat = floats.load_f32, floats.store_f32, floats.zero_f32, floats.splat_f32
add, sub, mul, total = floats.add_f32, floats.sub_f32, floats.mul_f32, floats.total_f32
larger, largest_lane, negative_size, fma = floats.max_f32, floats.largest_f32, floats.negative_size_f32, selected.fma
where_negative = floats.where_negative_f32
_MANY = selected.REGISTERS >= 32 and selected.WIDTH == 64  # one register a vector of 16 floats: 16 sums fit
_BLOCK, _UNIT, _KEYS, _FOUR = np.int64(BLOCK), np.int64(UNIT), np.int64(16), np.int64(4)
_FIRST, _NEXT, _VALUES, _NOWHERE = np.int64(0), np.int64(1), np.int64(-1), np.int64(-1)
_ONE = np.float32(1.0)
_LOWEST = np.float32(-3.4e38)  # not minus infinity, whose difference from itself is NaN
SO_FAR, SUM, LAST, LAST_SUM, OLD, NEW = range(6)  # rows of Work.softmax
zero_one, more_one, store_one = new_tile(1, 4)
zero_two, more_two, store_two = new_tile(2, 4)
zero_four, more_four, store_four = new_tile(4, 4 if _MANY else 1)
zero_narrow, more_narrow, store_narrow = new_tile(4, 2)


class Work(NamedTuple):
    """What one thread needs to attend with up to `rows` queries, a multiple of four. line: BLOCK or head_dim to 64, what is more."""

    queries: NDArray[np.float32]  # (rows * line,) rotated, times 1 / sqrt(head_dim); zero from head_dim to the next 8
    scores: NDArray[np.float32]  # (rows * line,) of one block, then its weights
    shares: NDArray[np.float32]  # (rows * line,) 64 columns of what one block adds
    attended: NDArray[np.float32]  # (rows * line,) result: row i from i * line on, head_dim of them
    panel: NDArray[np.float32]  # (line * 64,)
    # (6, rows) rounded up to 16: largest score and sum of weights of the blocks so far, of the last block, and the factors of both
    softmax: NDArray[np.float32]
    lengths: NDArray[np.int64]  # (rows,) positions that each query may see, ascending
    places: NDArray[np.int64]  # (2, rows) what each sees of a block


if _MANY:

    @inlined
    def _four_rows(left, at, stride, source, depth, vectors, out, to, ahead):
        """out[to + i * stride + lane] = sum_d left[at + i * stride + d] * source[d, lane] for four rows i and 16 * vectors lanes."""
        if vectors > 2:
            sums = zero_four()
            for d in range(0, depth, depths(source)):
                sums = more_four(sums, left, at + d, stride, source, d, ahead)
            store_four(out, to, stride, sums)
        else:
            few = zero_narrow()
            for d in range(0, depth, depths(source)):
                few = more_narrow(few, left, at + d, stride, source, d, ahead)
            store_narrow(out, to, stride, few)

else:  # registers are few or short

    @inlined
    def _four_rows(left, at, stride, source, depth, vectors, out, to, ahead):
        """out[to + i * stride + lane] = sum_d left[at + i * stride + d] * source[d, lane] for four rows i and 16 * vectors lanes."""
        for v in range(vectors):
            part, sums = moved(source, v, _FIRST), zero_four()
            for d in range(0, depth, depths(source)):
                sums = more_four(sums, left, at + d, stride, part, d, ahead)
            store_four(out, to + v * 16, stride, sums)


@kernel
def _multiply(lines, rows, places, dim, unit, vectors, source, out, ahead):
    """Of one block and 64 lanes: scores of all rows with the keys from place `unit` on; or, unit < 0, weights of all rows times values.

    lines: (array, line): row i from i * line on, as in `out`. source: (array, place, apart, step): 16 numbers of vector v and depth d stand
    at place + v * apart + d * step; depth is the element of keys, or the position from places[0, 0] on of values. ahead: (array, place,
    step): of each depth d, 64 elements from place + d * step on are asked for, which will be needed next; or None. Depths go up to the
    next 8, where rows are zero: several may lie in one byte.
    """
    left, line = lines
    if _MANY and rows == 2 and places[0, 0] == places[0, 1] and places[1, 0] == places[1, 1]:
        first, depth = (places[0, 0], places[1, 0] - places[0, 0]) if unit < 0 else (_FIRST, dim)
        two = zero_two()
        for d in range(0, depth, depths(source)):
            two = more_two(two, left, first + d, line, source, d, ahead)
        store_two(out, max(unit, 0), line, two)
        return
    if rows <= 2:
        for row in range(rows):
            first, depth = (places[0, row], places[1, row] - places[0, row]) if unit < 0 else (_FIRST, dim)
            at, to = row * line + first, row * line + max(unit, 0)
            part = moved(source, _FIRST, first - places[0, 0] if unit < 0 else _FIRST)
            sums = zero_one()
            for d in range(0, depth, depths(source)):
                sums = more_one(sums, left, at + d, _FIRST, part, d, ahead)
            store_one(out, to, _FIRST, sums)
        return
    for row in range(0, rows, 4):
        low, high = places[0, row], places[1, min(row + 3, rows - 1)]
        if low >= high or (unit >= 0 and (high <= unit or low >= unit + _UNIT)):
            continue
        first, depth = (low, high - low) if unit < 0 else (_FIRST, dim)
        part = moved(source, _FIRST, first - places[0, 0] if unit < 0 else _FIRST)
        lanes = vectors if unit < 0 else min((high - unit + 15) // 16, 4)
        _four_rows(left, row * line + first, line, part, depth, lanes, out, row * line + max(unit, 0), ahead)


@kernel
def exponentials(scores, at, length, largest):
    """scores[at + j] = exp(scores[at + j] - largest) for j < length, arguments <= 0; returns their sum. Whole 16s: more are overwritten."""
    sums, top = zero(), splat(largest)
    for j in range(at, at + length, 16):
        e = exp(sub(load(scores, j), top))
        store(scores, j, e)
        sums = add(sums, e)
    return total(sums)


@inlined
def _fill(scores, first, last, value):
    for j in range(first, last):
        scores[j] = np.float32(value)


@kernel
def _join(softmax, rows):
    """The last block's largest scores and sums of weights join those of the blocks before it; leaves the factors of both."""
    for row in range(0, rows, 16):
        before, top = load(softmax[SO_FAR], row), load(softmax[LAST], row)
        rise = sub(before, top)  # one of both factors is 1, the other is exp(-|rise|)
        factor = exp(negative_size(rise))
        old, new = where_negative(rise, factor, splat(_ONE)), where_negative(rise, splat(_ONE), factor)
        store(softmax[SO_FAR], row, where_negative(rise, top, before))
        sums = load(softmax[SUM], row), load(softmax[LAST_SUM], row)
        store(softmax[SUM], row, fma(sums[0], old, mul(sums[1], new)))
        store(softmax[OLD], row, old)
        store(softmax[NEW], row, new)


@inlined
def _add_share(shares, from_, attended, to, old, new, count):
    """attended[to ...] = attended[to ...] * old + shares[from_ ...] * new, `count` floats in 16s."""
    for d in range(0, count, 16):
        store(attended, to + d, fma(load(shares, from_ + d), splat(new), mul(load(attended, to + d), splat(old))))


@inlined
def _largest(scores, at, low, high):
    """The largest of scores low <= j < high, from scores[at] on; up to 15 before and after them become minus infinity."""
    begin, end = low // 16 * 16, (high + 15) // 16 * 16
    _fill(scores, at + begin, at + low, -np.inf)
    _fill(scores, at + high, at + end, -np.inf)
    top = load(scores, at + begin)
    for j in range(begin + 16, end, 16):
        top = larger(top, load(scores, at + j))
    return largest_lane(top)


# What a block takes is copied into `attend`: each call would hand over a hundred numbers that describe arrays, 15 % of a block's time.


@inlined
def _weigh(head, work, rows, line, start, begins):
    """Scores of a block -> weights of what its values are stored as, zero where a row's neighbours see more than it does.

    Row after row in each of three loops: in one loop, each row would wait for the sums over lanes of the one before.
    """
    places, scores, softmax, step = work.places, work.scores, work.softmax, 1 if rows <= 2 else 4
    for row in range(rows):
        low, high = places[0, row], places[1, row]
        softmax[LAST, row], softmax[LAST_SUM, row] = softmax[SO_FAR, row], np.float32(0.0)  # changes nothing
        if low < high:
            times_steps(head, False, start, begins, scores, row * line, low // 16 * 16, high)
            softmax[LAST, row] = _largest(scores, row * line, low, high)
    for row in range(rows):
        whole, high = places[0, row] // 16 * 16, places[1, row]
        if places[0, row] < high:
            softmax[LAST_SUM, row] = exponentials(scores, row * line + whole, high - whole, softmax[LAST, row])
    _join(softmax, rows)
    for row in range(rows):
        low, high, first, at = places[0, row], places[1, row], row // step * step, row * line
        if low < high:
            times_steps(head, True, start, begins, scores, at, low // 16 * 16, high)
            _fill(scores, at + places[0, first], at + low, 0.0)
            _fill(scores, at + high, at + places[1, min(first + step, rows) - 1], 0.0)


@kernel
def _add_shares(work, rows, line, column, more, count):
    """`count` columns of what the block gives to each row, in 16s, join what the row has; they stand in `shares` from `more` on."""
    for row in range(rows):
        if work.places[0, row] < work.places[1, row]:
            at, old, new = row * line + more, work.softmax[OLD, row], work.softmax[NEW, row]
            _add_share(work.shares, at, work.attended, row * line + column, old, new, count)


@inlined
def _score(head, work, rows, line, dim, start, begins):
    """Scores of all rows with the keys of a block, which lies at `start`. begins: its page, if it is a text's first block; -1 if not."""
    low, high, panel = work.places[0, 0], work.places[1, rows - 1], (work.panel, _FIRST, _KEYS, _UNIT)
    keys, values, row = keys_of(head.keys), values_of(head.values), value_place(head, _NEXT, _FIRST)
    for unit in range(low // _UNIT * _UNIT, high, _UNIT):
        whole = begins if unit == 0 else _NOWHERE
        whole_unit = high - unit > 32 and (start + unit) // 16 + 4 <= head.keys.shape[0]
        if rows <= few_queries(head) and whole_unit and not first_is_whole(head, whole):
            # Two units ahead: values of the same columns. Not what nobody will read: at depth 0 that would be 8 % more memory traffic.
            # Of packed values, whose rows may be shorter than a cache line, half of the block's bytes one after the other.
            first, step = value_place(head, start + low, min(unit, dim - 1)), row
            if is_packed(head):
                first, step = value_place(head, start + low, _FIRST) + unit // _UNIT * dim * unit_size(head), unit_size(head)
            ahead = values, first, step if high - low >= dim else _FIRST
            source = keys, key_place(head, start + unit), key_place(head, _KEYS), unit_size(head) // 4
            _multiply((work.queries, line), rows, work.places, dim, unit, _FIRST, source, work.scores, ahead)
            for j in range(dim, 0 if is_packed(head) else high - low):
                ask(ahead, j)
        else:
            unpack_keys(head, (start + unit) // 16, min((high - unit + 15) // 16, 4), dim, whole, work.panel)
            _multiply((work.queries, line), rows, work.places, dim, unit, _FIRST, panel, work.scores, None)


@inlined
def _mix(head, work, rows, line, dim, start, begins, goes_on):
    """What a block's values add to the results of all rows. goes_on: whether another block follows."""
    low, high, panel = work.places[0, 0], work.places[1, rows - 1], (work.panel, _FIRST, _KEYS, _UNIT)
    keys, values, row, size = keys_of(head.keys), values_of(head.values), value_place(head, _NEXT, _FIRST), unit_size(head)
    whole = begins if low == 0 else _NOWHERE
    for column in range(0, dim, _UNIT):
        vectors, more = min((dim - column + 15) // 16, 4), _FIRST
        if rows <= few_queries(head) and row >= size and not first_is_whole(head, whole):
            ahead = keys, key_place(head, start + _BLOCK + column), size if goes_on else _FIRST
            more = max(column + _UNIT - row * _UNIT // size, _FIRST)  # where fewer than 64 are left, so many come again
            source = values, (start + low) * row + (column - more) * size // _UNIT, _KEYS, row
            _multiply((work.scores, line), rows, work.places, dim, _VALUES, _FOUR, source, work.shares, ahead)
        else:
            unpack_values(head, start + low, start + high, column, whole, work.panel)
            _multiply((work.scores, line), rows, work.places, dim, _VALUES, vectors, panel, work.shares, None)
        _add_shares(work, rows, line, column, more, vectors * 16)


@inlined
def place_in(table, position):
    """Where a position lies in the cache. table: kv_cache.Table."""
    return table.numbers[position // table.size] * table.size + position % table.size


@separate()
@kernel
def attend(head, work, table, spare, rows, dim, window, first, last):
    """Blocks first <= b < last of one KV head, for `rows` queries: sums of weighted values, and of weights. What nobody sees is left out.

    head: Cache or QuantisedCache of one head, its arrays without layers and kv_heads;  dim: head_dim;
    table: kv_cache.Table; spare: where a block may be put together whose positions are in several pages, or -1 where none are;
    window: how many of its positions, the last ones, each query does see (sliding-window layers).
    """
    line = len(work.panel) // _UNIT
    for row in range(rows):
        work.softmax[SO_FAR, row], work.softmax[SUM, row] = _LOWEST, np.float32(0.0)
    for d in range(0, rows * line, 16):
        store(work.attended, d, zero())
    for block in range(max(first, (work.lengths[0] - window) // _BLOCK), last):
        start = block * _BLOCK
        if start < work.lengths[rows - 1]:
            for row in range(rows):
                work.places[0, row] = max(work.lengths[row] - window - start, 0)
                work.places[1, row] = min(work.lengths[row] - start, _BLOCK)
            at, begins = place_in(table, start), table.numbers[0] if start == 0 else _NOWHERE
            if spare >= 0:
                at = spare
                for j in range(0, work.places[1, rows - 1], 16):
                    copy_positions(head, place_in(table, start + j), spare + j)
            _score(head, work, rows, line, dim, at, begins)
            _weigh(head, work, rows, line, at, begins)
            _mix(head, work, rows, line, dim, at, begins, start + _BLOCK < work.lengths[rows - 1])


@kernel
def result(work, row, dim, out, place):
    """What query `row` gets for all blocks that it has seen -> out[place : place + dim]."""
    at, inverse = row * (len(work.panel) // _UNIT), np.float32(1.0) / work.softmax[SUM, row]
    for d in range(0, dim // 16 * 16, 16):
        store(out, place + d, mul(load(work.attended, at + d), splat(inverse)))
    for d in range(dim // 16 * 16, dim):
        out[place + d] = work.attended[at + d] * inverse


@kernel
def keep_block(work, rows, kept, at):
    """The state and sums of `rows` queries that have seen one block -> kept[at ...], rows * (line + 16) floats."""
    line = len(work.panel) // _UNIT
    for row in range(rows):
        place = at + row * (line + 16)
        kept[place], kept[place + 1] = work.softmax[SO_FAR, row], work.softmax[SUM, row]
        for d in range(0, line, 16):
            store(kept, place + 16 + d, load(work.attended, row * line + d))


@separate()
@kernel
def join_blocks(work, row, rows, kept, blocks):
    """Blocks that `keep_block` has kept, one after the other, join in their order, for query `row`; as row 0."""
    line = len(work.panel) // _UNIT
    work.softmax[SO_FAR, 0], work.softmax[SUM, 0] = _LOWEST, np.float32(0.0)
    for d in range(0, line, 16):
        store(work.attended, d, zero())
    for block in range(blocks):
        place = (block * rows + row) * (line + 16)
        work.softmax[LAST, 0], work.softmax[LAST_SUM, 0] = kept[place], kept[place + 1]
        _join(work.softmax, _NEXT)
        _add_share(kept, place + 16, work.attended, _FIRST, work.softmax[OLD, 0], work.softmax[NEW, 0], line)
