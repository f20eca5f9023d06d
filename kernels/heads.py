"""Attention of a step: who appends and attends to what. RoPE, KV cache and attention.py: s.qkv -> s.mixed.

Queries are numbered KV head by KV head, token by token, so that neighbours share keys and see almost the same positions.

One token: the blocks of positions of all KV heads stand in one row, of which each thread takes an equal part. A head that one thread has
whole is done. Of others each block is kept by itself, and after a barrier they join in their order, as they would have in one thread.
More tokens, of one text or of several: keys and values are stored first; then threads take, as they come, so many queries of a head of a
text as scratch has room for.
"""

from typing import NamedTuple

import numpy as np

from .arrays import ROPE_PAIRS
from .attention import attend, join_blocks, keep_block, place_in, result
from .barrier import barrier
from .cached_attention import append, head_of, perhaps_round, work_of
from .jit import inlined, kernel
from .kv_cache import BLOCK, UNIT, Table
from .rope import rotate, rotate_pairs
from .simd import floats
from .simd.atomics import atomic_add
from .split import split

load, store, mul, splat = floats.load_f32, floats.store_f32, floats.mul_f32, floats.splat_f32
_BLOCK, _UNIT, _START, _NEXT, _NOWHERE = np.int64(BLOCK), np.int64(UNIT), np.int64(0), np.int64(1), np.int64(-1)


@kernel
def _rotate_halves(rotated, dim, source, start, cos, sin, out, place):
    """rotated: None, all of the head, or how many of its values; an argument, so that Numba leaves out what None does not need."""
    if rotated is None:
        rotate(source, start, cos, sin, dim // 2, out, place)
    else:
        rotate(source, start, cos, sin, rotated // 2, out, place)
        for d in range(rotated, dim):
            out[place + d] = source[start + d]


@kernel
def _rotate(z, source, start, cos, sin, out, place):
    if z.rope == ROPE_PAIRS:
        rotate_pairs(source, start, cos, sin, z.head_dim // 2, out, place)
    else:
        _rotate_halves(z.rotated, z.head_dim, source, start, cos, sin, out, place)


@kernel
def append_to_cache(z, w, cache, s, layer, kv, row, scratch):
    """Rotate the new key of row `row` of one KV head and store key and value. scratch: (>= head_dim,) float32, overwritten."""
    dim, position = z.head_dim, s.positions[row, 0]
    key_at, value_at = (z.heads + kv) * dim, (z.heads + z.kv_heads + kv) * dim
    angles, place = w.rope_rows[layer] + position, place_in(Table(s.tables[s.positions[row, 1]], z.page), position)
    _rotate(z, s.qkv[row], key_at, w.cos[angles], w.sin[angles], scratch, _START)
    append(cache, layer, kv, place, place // z.page if position == 0 else _NOWHERE, dim, scratch, s.qkv[row], value_at)


class Queries(NamedTuple):
    """Some queries of a text and KV head."""

    text: int
    kv: int
    number: int  # of the first
    rows: int  # how many


@kernel
def _attend(z, w, cache, s, layer, queries, first, last, thread):
    """Queries, rotated and scaled, attend to blocks first <= b < last, by this thread."""
    text, kv, number, rows = queries
    dim, group, q, work = z.head_dim, z.heads // z.kv_heads, s.queries[thread], work_of(s, thread)
    line, scale = len(work.panel) // _UNIT, splat(np.float32(1.0) / np.sqrt(np.float32(dim)))
    for row in range(rows):
        t, head, place = s.texts[text, 0] + (number + row) // group, kv * group + (number + row) % group, row * line
        angles = w.rope_rows[layer] + s.positions[t, 0]
        _rotate(z, s.qkv[t], head * dim, w.cos[angles], w.sin[angles], q, place)
        perhaps_round(z.query_bits, q, place, dim)
        for d in range(place, place + dim, 16):  # a row's line is longer
            store(q, d, mul(load(q, d), scale))
        s.lengths[thread, row] = s.positions[t, 0] + 1  # not by `work`: Numba does not know that it is part of an argument
    head = head_of(cache, layer, kv)
    spare = head.values.shape[0] - (len(s.queries) - thread) * _BLOCK if z.page < _BLOCK and s.tables.shape[1] > 1 else _NOWHERE
    attend(head, work, Table(s.tables[text], z.page), spare, rows, dim, w.windows[layer], first, last)


@kernel
def _give(z, s, text, kv, number, row, thread):
    """Result `row` of this thread -> query `number` of the text and KV head."""
    group = z.heads // z.kv_heads
    result(work_of(s, thread), row, z.head_dim, s.mixed[s.texts[text, 0] + number // group], (kv * group + number % group) * z.head_dim)


@kernel
def _blocks_seen(s, text, window):
    """How many blocks a text's new tokens see, of which the last one has the last of them."""
    count, position = s.texts[text, 1], s.texts[text, 2]
    return (position + count + _BLOCK - 1) // _BLOCK - max(position + 1 - window, 0) // _BLOCK


@kernel
def _heads_to_append(heads, blocks, thread, threads):
    """One token: KV heads whose last block, which has its position, is this thread's."""
    return heads * blocks * thread // threads // blocks, heads * blocks * (thread + 1) // threads // blocks


@kernel
def _slot(kv, blocks, items, threads):
    """Where blocks of a KV head are kept that several threads share: the first of them. -1: one thread has it whole."""
    for thread in range(threads - 1):
        edge = items * (thread + 1) // threads
        if edge // blocks == kv and edge % blocks != 0:
            return thread
    return -1


@inlined
def _join_parts(z, s, blocks, thread, threads):
    """One token: blocks of heads that several threads share join. Queries of a head are split among all threads."""
    group, work = z.heads // z.kv_heads, work_of(s, thread)
    for kv in range(z.kv_heads):
        slot = _slot(kv, blocks, z.kv_heads * blocks, threads)
        if slot >= 0:
            for row in range(thread, group, threads):
                join_blocks(work, row, group, s.kept[slot], blocks)
                _give(z, s, _START, kv, row, _START, thread)


@kernel
def _blocks_of(kv, blocks, heads, is_mine, tokens, thread, threads):
    """Blocks first <= b < last of a KV head that a thread takes: of one token its share, of more all where the part is this thread's."""
    if tokens == 1:
        items, at = heads * blocks, kv * blocks
        return max(items * thread // threads - at, 0), min(items * (thread + 1) // threads - at, blocks)
    return 0, blocks if is_mine else 0


@kernel
def attention(z, w, cache, s, layer, texts, mine, control):
    """This thread's part of RoPE, cache append and attention. Before the next layer's, thread 0 sets s.turn to 0."""
    tokens, own, thread, threads = mine.tokens, mine.end - mine.begin, mine.thread, mine.threads
    group, room, work = z.heads // z.kv_heads, s.places.shape[2], work_of(s, thread)
    line, blocks = len(work.panel) // _UNIT, _blocks_seen(s, _START, w.windows[layer])
    if tokens == 1:
        first, last = _heads_to_append(z.kv_heads, blocks, thread, threads)
    else:
        first, last = split(z.kv_heads * own, _NEXT, mine.lane, mine.lanes)
    for number in range(first, last):
        append_to_cache(z, w, cache, s, layer, number // own, mine.begin + number % own, s.queries[thread])
    turn, part = 0, 0  # number of the part of the work that is this thread's next, and of the one that is looked at
    if tokens > 1:
        barrier(control, threads)
        turn = atomic_add(s.turn, 0, 1)
    for text in range(texts):
        count, blocks = s.texts[text, 1], _blocks_seen(s, text, w.windows[layer])
        base, tiles = (s.texts[text, 2] + count + _BLOCK - 1) // _BLOCK - blocks, (count * group + room - 1) // room
        for item in range(z.kv_heads * tiles):
            # A head's later queries see more. They come first, so that nobody begins with much when the others are done.
            kv, number = item % z.kv_heads, (tiles - 1 - item // z.kv_heads) * room
            begins, ends = _blocks_of(kv, blocks, z.kv_heads, turn == part, tokens, thread, threads)
            slot = _slot(kv, blocks, z.kv_heads * blocks, threads) if tokens == 1 else -1
            step, rows = blocks if slot < 0 else 1, min(room, count * group - number)
            queries = Queries(text, kv, number, rows)
            for block in range(begins, ends, step):
                _attend(z, w, cache, s, layer, queries, base + block, base + block + step, thread)
                if slot >= 0:
                    keep_block(work, rows, s.kept[slot], block * rows * (line + 16))
                else:
                    for row in range(rows):
                        _give(z, s, text, kv, number + row, row, thread)
            if tokens > 1 and turn == part:
                turn = atomic_add(s.turn, 0, 1)
            part += 1
    if tokens == 1 and z.kv_heads % threads != 0:
        barrier(control, threads)
        _join_parts(z, s, blocks, thread, threads)
