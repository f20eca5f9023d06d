"""The arrays that a step of the decoder works on. Shapes are fixed once; kernels receive these tuples and nothing else.

tokens: how many are processed at once (1 in decode, a chunk in prefill). threads: how many run a step together.
A projection's weights are packed ternary rows inside one flat byte array (often the file itself, memory-mapped), found by offset.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .control import Text, Wanted
from .group_rows import GROUPS, Groups
from .kv_cache import BLOCK, UNIT, rounded
from .kv_cache import zeros as _zeros

_numbers: Any = np.arange(16)
# NumPy integers, not Python's: Numba compiles a function once for every different Python constant that it is called with.
# Projections of a layer, in the order of `Weights.offsets` and `Weights.scales`.
PROJECTIONS = 7
Q, K, V, O, GATE, UP, DOWN = _numbers[:PROJECTIONS]  # noqa: E741
# Norms of a layer, in the order of `Weights.norm_offsets`; -1 there means that the model has none at this place.
ATTENTION_NORM, ATTENTION_SUB_NORM, FFN_NORM, FFN_SUB_NORM = _numbers[:4]
# After ATTENTION_NORM or FFN_NORM and before one projection (BitNet embedding models); those before O and DOWN are the sub-norms.
Q_NORM, K_NORM, V_NORM, GATE_NORM, UP_NORM = _numbers[4:9]
Q_HEAD_NORM, K_HEAD_NORM = _numbers[9:11]  # of every query and key head, before RoPE (Qwen3, Gemma3)
ATTENTION_OUT_NORM, FFN_OUT_NORM = _numbers[11:13]  # of what the O and DOWN projections add to the residual stream (Gemma3)
NORM_PLACES = 13
RELU2, SILU, GELU = range(3)
INT8, INT4, FP4 = _numbers[:3]  # codes of an input (quantise.py, inputs.py)
ROPE_HALVES, ROPE_PAIRS = range(2)  # which values rotate together: (i, i + head_dim / 2), or (2 i, 2 i + 1)
HEAD_F32, HEAD_F16, HEAD_Q8_0, HEAD_Q4_0, HEAD_Q6_K, HEAD_Q4_K, HEAD_BF16 = range(7)
HEAD_BLOCKS = {  # weights, bytes
    HEAD_F32: (1, 4),
    HEAD_F16: (1, 2),
    HEAD_Q8_0: (32, 34),
    HEAD_Q4_0: (32, 18),
    HEAD_Q6_K: (256, 210),
    HEAD_Q4_K: (256, 144),
    HEAD_BF16: (1, 2),
}

# Prefill unpacks up to BLOCK_ROWS weight rows at a time, and of each a block of K: 24 KiB, which with the activations of 8 tokens stay in
# an L1 cache of 32 KiB (tile.py).
BLOCK_ROWS = 48
TILE_BYTES = BLOCK_ROWS * 512
# Bytes between what two threads write. A core reads ahead past the end of its own, further than a page, and takes lines from the other's
# cache: with 4 KB a quarter of prefill was lost where cores have no cache in common, with 16 KB a tenth, from 64 KB on nothing
# (docs/log.md#apart). What nobody touches takes address space only.
APART = 1 << 16
QUERIES = 128  # that attention takes at once: unpacking a block of keys and values is under 4 % of the work then
HEAD_ROWS, HEAD_COLS, HEAD_TOKENS = 8, 2048, 8  # of the head, and tokens that meet them before others do (dense_rows.py)
TOGETHER = 16  # tokens that are searched at once, by one pass over the planes
TERMS = 7  # numbers that the search knows of each (head_search.py)
MAX_TOP = 256  # largest number of top logits that is searched for with the head's planes


class Sizes(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    activation: int  # RELU2, SILU or GELU
    norm_eps: float
    head_kind: int  # HEAD_F32, HEAD_F16 ...
    rope: int = ROPE_HALVES  # or ROPE_PAIRS
    digits: int = 1  # int8 codes of an activation; 2: for models with float activations (parts.py), which need parts or groups too
    # What is done to inputs of projections. With 2 digits, codes are INT8.
    codes: int = INT8  # of the inputs of Q, K, V, GATE and UP: INT8, INT4 or FP4
    codes_o: int = INT8  # of those of O
    codes_down: int = INT8  # of those of DOWN
    kept: int = 0  # so many of a token's inputs of O, the largest, are kept (inputs.py); 0: all
    page: int = BLOCK  # positions of a page of the KV cache: a multiple of BLOCK, or of 16, or a whole context
    query_bits: int | None = None  # 4: queries are rounded to as many bits after RoPE, as the KV cache q4 does with keys; None: not at all
    hadamard: int = 0  # 1: inputs of O and DOWN are transformed (inputs.py)
    rotated: int | None = None  # values of a head that RoPE rotates, the first ones; None: all


class Weights(NamedTuple):
    packed: NDArray[np.uint8]  # (bytes,) I2_S rows of every projection, packed_width(cols) / 4 bytes each
    offsets: NDArray[np.int64]  # (layers, PROJECTIONS) first byte of each projection in `packed`
    scales: NDArray[np.float32]  # (layers, PROJECTIONS)
    norms: NDArray[np.float32]  # (floats,) all norm weights, one after the other; the last is the output norm
    norm_offsets: NDArray[np.int64]  # (layers + 1, NORM_PLACES) first element in `norms`; row `layers`, column 0: the output norm
    head: NDArray[np.uint8]  # (bytes,) embedding or head matrix, (vocab, hidden) of type head_kind
    head_offset: NDArray[np.int64]  # (1,)
    head_file: NDArray[np.int64]  # (1,) descriptor of the file that `head` maps, for single rows; -1: there is none
    cos: NDArray[np.float32]  # (tables * context, rotated values / 2), a table for each kind of rotations that layers have
    sin: NDArray[np.float32]  # as cos
    rope_rows: NDArray[np.int64]  # (layers,) first row of the layer's table in cos and sin
    windows: NDArray[np.int64]  # (layers,) positions that a token sees, itself and those before it; EVERYTHING: all
    planes: "Planes"  # of the head, for `top` logits; no rows where the head is always read whole
    columns: NDArray[np.uint8]  # (bytes,) the `down` projections column by column (columns.py); empty where they are never read so
    columns_built: NDArray[np.int64]  # (1,) 1 once they are
    base3: NDArray[np.uint8] = np.zeros(0, np.uint8)  # (bytes,) base-3 rows of every projection (base3.py), which decode reads once built
    base3_offsets: NDArray[np.int64] = np.zeros(
        (0, PROJECTIONS), np.int64
    )  # (layers, PROJECTIONS) first byte of each projection in `base3`
    base3_built: NDArray[np.int64] = np.zeros(1, np.int64)  # (1,) how many layers have them, the first ones
    # Where there are parts (parts.py), in place of `scales`: the rows of a projection up to part_ends[i] have the scale part_scales[i],
    # those up to part_ends[i + 1] the next, and i = part_at[layer, projection] is the first. The last end is the number of rows.
    part_at: NDArray[np.int64] = np.zeros((0, PROJECTIONS), np.int64)  # (layers, PROJECTIONS); no layers: there are no parts
    part_ends: NDArray[np.int64] = np.zeros(0, np.int64)  # (parts,)
    part_scales: NDArray[np.float32] = np.zeros(0, np.float32)  # (parts,)
    # Not None: `packed` has matrices of group_rows.py, whose products are multiplied by `scales`; no parts, columns or base-3 rows.
    groups: Groups | None = None
    head_groups: Groups | None = None  # the same of `head`, in place of head_kind
    biases: NDArray[np.float32] | None = None  # (layers, (heads + 2 kv_heads) * head_dim) what is added to q, k and v, in this order
    folds: "Folds | None" = None  # weights that are folded with a Hadamard transform


EVERYTHING = 1 << 62  # no window
NO_ROWS = np.zeros(0, np.int64)


class Planes(NamedTuple):
    """Rows of the head as 8-bit codes, cut into planes of 6 and 2 bits, and how far each step of them may be off: head_planes.py.

    They have the head's rows that may be chosen, and no others: a search reads no byte of a row that stands for no token.
    """

    six: NDArray[np.uint8]  # (rows * padded * 3 / 4,) upper four bits, and the next two
    low: NDArray[np.uint8]  # (rows * padded / 4,) last two bits
    scales: NDArray[np.float32]  # (rows,) one step of the codes
    errors: NDArray[np.float32]  # (3, rows) length of what is left of a row after 6 and 8 bits, and of the row itself
    ids: NDArray[np.int64]  # (rows,) which row of the head each is, ascending


class Folds(NamedTuple):
    """Which projections take inputs that a Hadamard transform has spread (folds.py)."""

    signs: NDArray[np.float32]  # (values,) +1 or -1
    at: NDArray[np.int64]  # (layers + 1, PROJECTIONS) first of an input's signs; -1: it is not folded. Row `layers`, column 0: the head
    block: int  # values that are transformed together, a power of two


class CutFrame(NamedTuple):
    """The frame of head_planes.build_rows; values and codes are one thread's scratch."""

    data: NDArray[np.uint8]
    planes: Planes
    values: NDArray[np.float32]
    codes: NDArray[np.uint8]


class RecodeFrame(NamedTuple):
    """The frame of recode.recode_rows."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    minima: NDArray[np.float32]
    out: NDArray[np.uint8]


class SoftmaxFrame(NamedTuple):
    """The frame of softmax.sums_of_exp."""

    logits: NDArray[np.float32]  # (tokens, vocab)
    largest: NDArray[np.float32]  # (tokens,) of each row
    sums: NDArray[np.float64]  # (tokens,) result


class TurnFrame(NamedTuple):
    """The frame of columns.transpose_rows."""

    packed: NDArray[np.uint8]
    columns: NDArray[np.uint8]


class Base3Frame(NamedTuple):
    """The frame of base3.build_rows; tile is one thread's scratch."""

    packed: NDArray[np.uint8]
    rows: NDArray[np.uint8]
    tile: NDArray[np.uint8]


def new_planes(rows: int, cols: int, width: int = 64, silent: NDArray[np.int64] = NO_ROWS) -> Planes:
    """Room for the planes of a head of `rows` rows, without the `silent` ones; kernels read registers of `width` bytes."""
    length, ids = padded(cols, width), np.delete(np.arange(rows), silent)
    rows = len(ids)
    return Planes(
        six=_zeros(rows * length // 4 * 3, np.uint8),
        low=_zeros(rows * length // 4, np.uint8),
        scales=np.zeros(rows, np.float32),
        errors=np.zeros((3, rows), np.float32),
        ids=ids,
    )


class Scratch(NamedTuple):
    x: NDArray[np.float32]  # (tokens, hidden) residual stream
    codes: NDArray[np.int8]  # (rows, widest padded + 256) activations in kernel order; rows = max(tokens rounded up to 16, threads)
    factors: NDArray[np.float32]  # (rows,) 127 / max|x|
    sums: NDArray[np.int32]  # (rows,) sum of the codes
    qkv: NDArray[np.float32]  # (tokens, (heads + 2 kv_heads) * head_dim)
    mixed: NDArray[np.float32]  # (tokens, heads * head_dim) attention output
    branch: NDArray[np.float32]  # (tokens, hidden) output of O or DOWN where a norm comes before it is added to x
    gate: NDArray[np.float32]  # (tokens, feed_forward)
    up: NDArray[np.float32]  # (tokens, feed_forward)
    normed: NDArray[np.float32]  # (rows, widest rounded up to 16) float input of the quantiser
    # For each thread what attention.py calls Work. rows: queries at once; line: BLOCK or head_dim rounded up to 64, what is more.
    queries: NDArray[np.float32]  # (threads, >= rows * line)
    scores: NDArray[np.float32]  # (threads, >= rows * line)
    shares: NDArray[np.float32]  # (threads, >= rows * line)
    attended: NDArray[np.float32]  # (threads, >= rows * line)
    panel: NDArray[np.float32]  # (2 threads, line * 64): every second row, and nothing between them
    softmax: NDArray[np.float32]  # (threads, >= 6, rows rounded up to 16)
    lengths: NDArray[np.int64]  # (threads, >= rows)
    places: NDArray[np.int64]  # (threads, >= 2, rows)
    kept: NDArray[np.float32]  # (threads - 1, blocks * group * (line + 16)) what one token sees in blocks of a head that threads share
    chosen: NDArray[np.int64]  # (threads, >= feed_forward) rows of `up` that matter
    counts: NDArray[np.int64]  # (threads, 2) rows of `up` seen and skipped in decode, since the start
    active: NDArray[np.int64]  # (threads, >= padded feed_forward + 4) columns of `down` that meet a value
    words: NDArray[np.int32]  # (threads, >= padded feed_forward / 4 + 1) those values, four to a word
    column_sums: NDArray[np.int32]  # (hidden, padded)
    column_counts: NDArray[np.int64]  # (threads, 2) columns of `down`, where it was read by columns, and of these not read
    tile: NDArray[np.uint8]  # (threads, >= TILE_BYTES and staged_bytes) unpacked weight rows
    block_sums: NDArray[np.int32]  # (threads, >= (tokens rounded up to 16 + 1) * BLOCK_ROWS)
    texts: NDArray[np.int64]  # (tokens, 3) which rows are whose: control.Text
    positions: NDArray[np.int64]  # (tokens, 2) of each row: its position, and which of the texts it is of
    tables: NDArray[np.int64]  # (tokens, pages of a context) of each text: numbers of its pages of the KV cache, in order
    turn: NDArray[np.int64]  # (1,) the part of attention that is nobody's yet: threads take them one by one
    wanted: NDArray[np.int64]  # (tokens, 3) whose logits a step is asked for: control.Wanted
    logits: NDArray[np.float32]  # (tokens, vocab), of which only what is asked for takes memory
    # What the search for the largest logits of up to TOGETHER tokens works on (head_search.py, head_sums.py).
    listed: NDArray[np.int64]  # (threads, tokens) rows of `wanted`: those whose logits are all wanted, then the others
    head_places: NDArray[np.int64]  # (threads, tokens) places in `logits` of the first
    digits: NDArray[np.int8]  # (2 TOGETHER + 8, padded hidden) first and second digits of the head's activations
    terms: NDArray[np.float64]  # (TOGETHER, TERMS) what is known of them
    plane_sums: NDArray[np.int32]  # (threads, >= 2 TOGETHER * 64) code sums of some rows of the planes
    rest: NDArray[np.float32]  # (threads, >= hidden) what the first digits leave
    head_values: NDArray[np.float32]  # (threads, >= 2 HEAD_COLS) parts of rows of the head
    head_sums: NDArray[np.float32]  # (threads, >= HEAD_ROWS * HEAD_TOKENS, 32) their sums with tokens
    nearly: NDArray[np.float32]  # (TOGETHER, vocab) logits of the rows of the planes, from what is read of them so far
    candidates: NDArray[np.int64]  # (vocab,) rows of the planes that may still be among the largest, each thread's from its first row on
    head_row: NDArray[np.uint8]  # (threads, >= bytes of a row in float32) one row of the head
    best: NDArray[np.int64]  # (threads, >= MAX_TOP) rows of the planes with the largest such logits
    best_logits: NDArray[np.float32]  # (TOGETHER, threads, MAX_TOP) their exact logits
    head_counts: NDArray[np.int64]  # (threads, 3) rows read since the start: upper six bits, lower two, exact
    # Second digits of activations (parts.py); no rows where there are none.
    fine_codes: NDArray[np.int8]  # as codes
    fine_factors: NDArray[np.float32]  # as factors
    fine_sums: NDArray[np.int32]  # as sums
    residue: NDArray[np.float32]  # (threads, >= widest) what the first digits leave
    groups: "GroupScratch | None"  # where weights have scales of groups


class GroupScratch(NamedTuple):
    """What grouped.py needs. rows: as `codes`; units: 64 of the widest row, or more, each with one step (group_rows.unit_of)."""

    minus: NDArray[np.int32]  # (rows, units) minus the sum of a unit's codes
    steps: NDArray[np.float32]  # (rows, units) what one step of its codes stands for
    fine_minus: NDArray[np.int32]  # the same of second digits; no rows where there are none
    fine_steps: NDArray[np.float32]
    totals: NDArray[np.float32]  # (threads, >= rows * BLOCK_ROWS) products of a tile so far
    scales: NDArray[np.float32]  # (threads, >= 8 * BLOCK_ROWS) scales of a tile


def packed_width(cols: int) -> int:
    """Weights of a packed row: whole blocks of 128. What is past `cols` meets activation codes of 0, so it may be anything."""
    return -(-cols // 128) * 128


def padded(cols: int, width: int = 64) -> int:
    """Length of an activation row in kernel order: whole groups of 4 registers of `width` bytes."""
    group = max(128, 4 * width)
    return -(-cols // group) * group


def base3_row_bytes(cols: int, width: int) -> int:
    """Bytes of a base-3 row: 320 weights (64-byte registers) or 160 take one register. `cols`: a multiple of 128.

    base3.py compiles it too.
    """
    registers = (cols + 4 * width - 1) // (4 * width) * 4
    return (registers + 4) // 5 * width


def staged_bytes(tokens: int, cols: int) -> int:
    """Bytes of a tile in which staged.py multiplies: in pages of 4 KB, eight for weights, and one for 64 activations of 32 tokens."""
    return max(8, padded(cols) // 64 * -(-tokens // 32)) * 4096


def _apart(dtype: type[np.generic], threads: int, count: int, *line: int) -> NDArray[Any]:
    """(threads, >= count, *line): what each thread has, far enough from what the next one has."""
    return _zeros((threads, count - -APART // (np.dtype(dtype).itemsize * math.prod(line)), *line), dtype)


def new_group_scratch(digits: int, rows: int, widest: int, threads: int) -> GroupScratch:
    """Scratch for `rows` rows of up to `widest` activations."""
    shape = rows, widest // min(GROUPS)
    fine = (rows if digits == 2 else 0), shape[1]
    return GroupScratch(
        minus=_zeros(shape, np.int32),
        steps=_zeros(shape, np.float32),
        fine_minus=_zeros(fine, np.int32),
        fine_steps=_zeros(fine, np.float32),
        totals=_apart(np.float32, threads, rows * BLOCK_ROWS),
        scales=_apart(np.float32, threads, 8 * BLOCK_ROWS),
    )


def _head_scratch(z: Sizes, chunk: int, threads: int) -> dict[str, Any]:
    """The fields of Scratch that only the head uses."""
    return {
        "wanted": _zeros((chunk, len(Wanted._fields)), np.int64),
        "logits": _zeros((chunk, z.vocab), np.float32),
        "listed": _zeros((threads, chunk), np.int64),
        "head_places": _zeros((threads, chunk), np.int64),
        "digits": _zeros((2 * TOGETHER + 8, padded(z.hidden)), np.int8),
        "terms": _zeros((TOGETHER, TERMS), np.float64),
        "plane_sums": _apart(np.int32, threads, 2 * TOGETHER * 64),
        "rest": _apart(np.float32, threads, z.hidden),
        "head_values": _apart(np.float32, threads, 2 * HEAD_COLS),
        "head_sums": _apart(np.float32, threads, HEAD_ROWS * HEAD_TOKENS, 32),
        "nearly": _zeros((TOGETHER, z.vocab), np.float32),
        "candidates": _zeros(z.vocab, np.int64),
        "head_row": _apart(np.uint8, threads, 4 * z.hidden),
        "best": _apart(np.int64, threads, MAX_TOP),
        "best_logits": _zeros((TOGETHER, threads, MAX_TOP), np.float32),
        "head_counts": _zeros((threads, 3), np.int64),
    }


def new_scratch(z: Sizes, chunk: int, context: int, threads: int, groups: Groups | None = None) -> Scratch:
    """Scratch for steps of up to `chunk` tokens, by `threads` threads, over a cache of `context` tokens.

    groups: Weights.groups, or .head_groups where only the head has them.
    """
    inner, group = z.heads * z.head_dim, z.heads // z.kv_heads
    queries, line = min(QUERIES, rounded(chunk * group, 4)), max(BLOCK, rounded(z.head_dim, UNIT))
    widest, padded_tokens = max(z.hidden, inner, z.feed_forward), rounded(chunk, 16)
    rows = max(padded_tokens + 16 if groups else padded_tokens, threads)  # grouped.py reads up to 16 at a time, from any row on
    return Scratch(
        x=_zeros((chunk, z.hidden), np.float32),
        codes=_zeros((rows, padded(widest) + 256), np.int8),  # 256: base-3 rows meet up to four registers more than there are
        factors=np.ones(rows, np.float32),
        sums=_zeros(rows, np.int32),
        qkv=_zeros((chunk, inner + 2 * z.kv_heads * z.head_dim), np.float32),
        mixed=_zeros((chunk, inner), np.float32),
        branch=_zeros((chunk, z.hidden), np.float32),
        gate=_zeros((chunk, z.feed_forward), np.float32),
        up=_zeros((chunk, z.feed_forward), np.float32),
        normed=_zeros((rows, rounded(widest, 16)), np.float32),
        queries=_apart(np.float32, threads, queries * line),
        scores=_apart(np.float32, threads, queries * line),
        shares=_apart(np.float32, threads, queries * line),
        attended=_apart(np.float32, threads, queries * line),
        panel=_zeros((2 * threads, line * UNIT), np.float32),
        softmax=_apart(np.float32, threads, 6, rounded(queries, 16)),
        lengths=_apart(np.int64, threads, queries),
        places=_apart(np.int64, threads, 2, queries),
        kept=_zeros(
            (threads - 1 if any(z.kv_heads % crew for crew in range(2, threads + 1)) else 0, -(-context // BLOCK) * group * (line + 16)),
            np.float32,
        ),
        chosen=_apart(np.int64, threads, z.feed_forward),
        counts=_zeros((threads, 2), np.int64),
        active=_apart(np.int64, threads, padded(z.feed_forward) + 4),
        words=_apart(np.int32, threads, padded(z.feed_forward) // 4 + 1),
        column_sums=_zeros(padded(z.hidden), np.int32),
        column_counts=_zeros((threads, 2), np.int64),
        tile=_apart(np.uint8, threads, staged_bytes(chunk, widest)),
        block_sums=_apart(np.int32, threads, (padded_tokens + 1) * BLOCK_ROWS),
        texts=_zeros((chunk, len(Text._fields)), np.int64),
        positions=_zeros((chunk, 2), np.int64),
        tables=_zeros((chunk, -(-context // z.page)), np.int64),
        turn=_zeros(1, np.int64),
        **_head_scratch(z, chunk, threads),
        fine_codes=_zeros((rows if z.digits == 2 else 0, padded(widest) + 256), np.int8),
        fine_factors=np.ones(rows, np.float32),
        fine_sums=_zeros(rows, np.int32),
        residue=_apart(np.float32, threads, widest),
        groups=new_group_scratch(z.digits, rows, widest, threads) if groups else None,
    )
