"""Attention of a step: who appends and attends to what. RoPE, KV cache and attention.py: s.qkv -> s.mixed.

Queries are numbered KV head by KV head, token by token, so that neighbours share keys and see almost the same positions.

One token: the blocks of positions of all KV heads stand in one row, of which each thread takes an equal part. A head that one thread has
whole is done. Of others each block is kept by itself, and after a barrier they join in their order, as they would have in one thread.
More tokens: keys and values are stored first; then threads take turns at so many queries of a head as scratch has room for.
"""

import numpy as np

from .arrays import ROPE_PAIRS
from .attention import attend, join_blocks, keep_block, result
from .barrier import barrier
from .cached_attention import append, head_of, perhaps_round, work_of
from .jit import inlined, kernel
from .kv_cache import BLOCK, UNIT
from .rope import rotate, rotate_pairs

_BLOCK, _UNIT, _START = np.int64(BLOCK), np.int64(UNIT), np.int64(0)


@kernel
def _rotate_halves(rotated, dim, source, start, cos, sin, out, place):  # type: ignore[no-untyped-def]
    """rotated: None, all of the head, or how many of its values; an argument, so that Numba leaves out what None does not need."""
    if rotated is None:
        rotate(source, start, cos, sin, dim // 2, out, place)
    else:
        rotate(source, start, cos, sin, rotated // 2, out, place)
        for d in range(rotated, dim):
            out[place + d] = source[start + d]


@kernel
def _rotate(z, source, start, cos, sin, out, place):  # type: ignore[no-untyped-def]
    if z.rope == ROPE_PAIRS:
        rotate_pairs(source, start, cos, sin, z.head_dim // 2, out, place)
    else:
        _rotate_halves(z.rotated, z.head_dim, source, start, cos, sin, out, place)


@inlined
def append_to_cache(z, w, cache, s, layer, kv, t, position, scratch):  # type: ignore[no-untyped-def]
    """Rotate token t's new key of one KV head and store key and value. scratch: (>= head_dim,) float32, overwritten."""
    dim = z.head_dim
    key_at, value_at = (z.heads + kv) * dim, (z.heads + z.kv_heads + kv) * dim
    row = w.rope_rows[layer] + position + t
    _rotate(z, s.qkv[t], key_at, w.cos[row], w.sin[row], scratch, _START)
    append(cache, layer, kv, position + t, dim, scratch, s.qkv[t], value_at)


@inlined
def _attend(z, w, cache, s, layer, kv, number, rows, position, first, last, thread):  # type: ignore[no-untyped-def]
    """Queries `number` and following of a KV head, rotated and scaled, attend to blocks first <= b < last, by this thread."""
    dim, group, q, work = z.head_dim, z.heads // z.kv_heads, s.queries[thread], work_of(s, thread)
    line, scale = len(work.panel) // _UNIT, np.float32(1.0) / np.sqrt(np.float32(dim))
    for row in range(rows):
        t, head, place = (number + row) // group, kv * group + (number + row) % group, row * line
        angles = w.rope_rows[layer] + position + t
        _rotate(z, s.qkv[t], head * dim, w.cos[angles], w.sin[angles], q, place)
        perhaps_round(z.query_bits, q, place, dim)
        for d in range(place, place + dim):
            q[d] *= scale
        s.lengths[thread, row] = position + t + 1  # not by `work`: Numba does not know that it is part of an argument
    attend(head_of(cache, layer, kv), work, rows, dim, w.windows[layer], first, last)


@kernel
def _give(z, s, kv, number, row, thread):  # type: ignore[no-untyped-def]
    """Result `row` of this thread -> query `number` of the KV head."""
    group = z.heads // z.kv_heads
    result(work_of(s, thread), row, z.head_dim, s.mixed[number // group], (kv * group + number % group) * z.head_dim)


@kernel
def _heads_to_append(heads, blocks, thread, threads):  # type: ignore[no-untyped-def]
    """One token: KV heads whose last block, which has its position, is this thread's."""
    return heads * blocks * thread // threads // blocks, heads * blocks * (thread + 1) // threads // blocks


@kernel
def _slot(kv, blocks, items, threads):  # type: ignore[no-untyped-def]
    """Where blocks of a KV head are kept that several threads share: the first of them. -1: one thread has it whole."""
    for thread in range(threads - 1):
        edge = items * (thread + 1) // threads
        if edge // blocks == kv and edge % blocks != 0:
            return thread
    return -1


@inlined
def _join_parts(z, s, blocks, thread, threads):  # type: ignore[no-untyped-def]
    """One token: blocks of heads that several threads share join. Queries of a head are split among all threads."""
    group, work = z.heads // z.kv_heads, work_of(s, thread)
    for kv in range(z.kv_heads):
        slot = _slot(kv, blocks, z.kv_heads * blocks, threads)
        if slot >= 0:
            for row in range(thread, group, threads):
                join_blocks(work, row, group, s.kept[slot], blocks)
                _give(z, s, kv, row, _START, thread)


@kernel
def _part(kv, tile, tiles, blocks, tokens, heads, thread, threads):  # type: ignore[no-untyped-def]
    """Blocks first <= b < last that a thread takes for one tile of queries."""
    if tokens == 1:
        items, at = heads * blocks, kv * blocks
        return max(items * thread // threads - at, 0), min(items * (thread + 1) // threads - at, blocks)
    # 0 1 2 2 1 0 0 1 2 ...: a head's later queries see more, and nobody should get them every time.
    turn = (kv * tiles + tile) % (2 * threads)
    return 0, blocks if thread == (turn if turn < threads else 2 * threads - 1 - turn) else 0


@inlined
def attention(z, w, cache, s, layer, tokens, position, thread, threads, control):  # type: ignore[no-untyped-def]
    """This thread's part of RoPE, cache append and attention."""
    each, room, work = tokens * (z.heads // z.kv_heads), s.lengths.shape[1], work_of(s, thread)  # `each`: queries of one KV head
    base, tiles = max(position + 1 - w.windows[layer], 0) // _BLOCK, (each + room - 1) // room
    blocks = (position + tokens + _BLOCK - 1) // _BLOCK - base
    if tokens == 1:
        first, last = _heads_to_append(z.kv_heads, blocks, thread, threads)
    else:
        first, last = z.kv_heads * tokens * thread // threads, z.kv_heads * tokens * (thread + 1) // threads
    for number in range(first, last):
        append_to_cache(z, w, cache, s, layer, number // tokens, number % tokens, position, s.queries[thread])
    if tokens > 1:
        barrier(control, threads)
    line = len(s.panel[thread]) // _UNIT
    for item in range(z.kv_heads * tiles):
        kv, number = item // tiles, item % tiles * room
        begins, ends = _part(kv, item % tiles, tiles, blocks, tokens, z.kv_heads, thread, threads)
        slot = _slot(kv, blocks, z.kv_heads * blocks, threads) if tokens == 1 else -1
        step, rows = blocks if slot < 0 else 1, min(room, each - number)
        for block in range(begins, ends, step):
            _attend(z, w, cache, s, layer, kv, number, rows, position, base + block, base + block + step, thread)
            if slot >= 0:
                keep_block(work, rows, s.kept[slot], block * rows * (line + 16))
            else:
                for row in range(rows):
                    _give(z, s, kv, number + row, row, thread)
    if tokens == 1 and z.kv_heads % threads != 0:
        barrier(control, threads)
        _join_parts(z, s, blocks, thread, threads)
