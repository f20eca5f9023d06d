"""The arrays that a step of the decoder works on. Shapes are fixed once; kernels receive these tuples and nothing else.

tokens: how many are processed at once (1 in decode, a chunk in prefill). threads: how many run a step together.
A projection's weights are packed ternary rows inside one flat byte array (often the file itself, memory-mapped), found by offset.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_numbers: Any = np.arange(8)
# NumPy integers, not Python's: Numba compiles a function once for every different Python constant that it is called with.
# Projections of a layer, in the order of `Weights.offsets` and `Weights.scales`.
Q, K, V, O, GATE, UP, DOWN = _numbers[:7]  # noqa: E741
# Norms of a layer, in the order of `Weights.norm_offsets`; -1 there means that the model has none at this place.
ATTENTION_NORM, ATTENTION_SUB_NORM, FFN_NORM, FFN_SUB_NORM = _numbers[:4]
RELU2, SILU = range(2)
HEAD_F32, HEAD_F16, HEAD_Q8_0, HEAD_Q4_0, HEAD_Q6_K = range(5)
HEAD_BLOCKS = {HEAD_F32: (1, 4), HEAD_F16: (1, 2), HEAD_Q8_0: (32, 34), HEAD_Q4_0: (32, 18), HEAD_Q6_K: (256, 210)}  # weights, bytes

# Prefill unpacks BLOCK_ROWS weight rows at a time, BLOCK_BYTES packed bytes of each: 8 * 2,560 codes, and the 4 * 2,560 activations
# that they meet, are 30 KiB, which stays in a 32 KiB L1 cache.
BLOCK_ROWS, BLOCK_BYTES = 8, 640
TILE_BYTES = BLOCK_ROWS * BLOCK_BYTES * 4
MAX_TOP = 256  # largest number of top logits that is searched for with the head's planes


class Sizes(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    activation: int  # RELU2 or SILU
    norm_eps: float
    head_kind: int  # HEAD_F32, HEAD_F16 ...


class Weights(NamedTuple):
    packed: NDArray[np.uint8]  # (bytes,) I2_S rows of every projection
    offsets: NDArray[np.int64]  # (layers, 7) first byte of each projection in `packed`
    scales: NDArray[np.float32]  # (layers, 7)
    norms: NDArray[np.float32]  # (floats,) all norm weights, one after the other; the last is the output norm
    norm_offsets: NDArray[np.int64]  # (layers + 1, 4) first element in `norms`; row `layers`, column 0: the output norm
    head: NDArray[np.uint8]  # (bytes,) embedding or head matrix, (vocab, hidden) of type head_kind
    head_offset: NDArray[np.int64]  # (1,)
    cos: NDArray[np.float32]  # (context, head_dim / 2)
    sin: NDArray[np.float32]  # (context, head_dim / 2)
    planes: "Planes"  # of the head, for `top` logits; no rows where the head is always read whole
    columns: NDArray[np.uint8]  # (bytes,) the `down` projections column by column (columns.py); empty where they are never read so
    columns_built: NDArray[np.int64]  # (1,) 1 once they are
    base3: NDArray[np.uint8] = np.zeros(0, np.uint8)  # (bytes,) base-3 rows of every projection (base3.py), which decode reads once built
    base3_offsets: NDArray[np.int64] = np.zeros((0, 7), np.int64)  # (layers, 7) first byte of each projection in `base3`
    base3_built: NDArray[np.int64] = np.zeros(1, np.int64)  # (1,) 1 once they are


class Planes(NamedTuple):
    """Rows of the head as 8-bit codes, cut into planes of 4, 2 and 2 bits, and how far each step of them may be off: head_planes.py."""

    high: NDArray[np.uint8]  # (rows * padded / 2,) upper four bits
    middle: NDArray[np.uint8]  # (rows * padded / 4,) next two bits
    low: NDArray[np.uint8]  # (rows * padded / 4,) last two bits
    scales: NDArray[np.float32]  # (rows,) one step of the codes
    errors: NDArray[np.float32]  # (rows, 3) length of what is left of a row after 4, 6 and 8 bits


def new_planes(rows: int, cols: int, width: int = 64) -> Planes:
    """Room for planes; kernels read registers of `width` bytes."""
    length = padded(cols, width)
    return Planes(
        high=np.zeros(rows * length // 2, np.uint8),
        middle=np.zeros(rows * length // 4, np.uint8),
        low=np.zeros(rows * length // 4, np.uint8),
        scales=np.zeros(rows, np.float32),
        errors=np.zeros((rows, 3), np.float32),
    )


class Cache(NamedTuple):
    """blocks = context / 16 rounded up; width = head_dim rounded up to 16. Keys are stored after RoPE.

    Values are float32, or float16 kept as its bits in uint16 (Numba has no float16 on CPUs).
    """

    keys: NDArray[np.float32] | NDArray[np.uint16]  # (layers, kv_heads, blocks, head_dim, 16): position p is [..., p // 16, :, p % 16]
    values: NDArray[np.float32] | NDArray[np.uint16]  # (layers, kv_heads, 16 * blocks, width)


CACHE_TYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.uint16)}


def cache_shapes(layers: int, kv_heads: int, head_dim: int, context: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of Cache.keys and Cache.values."""
    blocks, width = -(-context // 16), -(-head_dim // 16) * 16
    return (layers, kv_heads, blocks, head_dim, 16), (layers, kv_heads, 16 * blocks, width)


def new_cache(layers: int, kv_heads: int, head_dim: int, context: int, kind: str = "f32") -> Cache:
    """An empty cache of a kind in CACHE_TYPES. Zeros: the operating system gives the memory when it is first written."""
    keys, values = (np.zeros(shape, CACHE_TYPES[kind]) for shape in cache_shapes(layers, kv_heads, head_dim, context))
    return Cache(keys, values)


class Scratch(NamedTuple):
    x: NDArray[np.float32]  # (tokens, hidden) residual stream
    codes: NDArray[np.int8]  # (rows, widest padded + 256) activations in kernel order; rows = max(tokens rounded up, threads)
    factors: NDArray[np.float32]  # (rows,) 127 / max|x|
    sums: NDArray[np.int32]  # (rows,) sum of the codes
    qkv: NDArray[np.float32]  # (tokens, (heads + 2 kv_heads) * head_dim)
    mixed: NDArray[np.float32]  # (tokens, heads * head_dim) attention output
    gate: NDArray[np.float32]  # (tokens, feed_forward)
    up: NDArray[np.float32]  # (tokens, feed_forward)
    normed: NDArray[np.float32]  # (rows, widest) float input of the quantiser
    scores: NDArray[np.float32]  # (threads, 4, 16 * blocks) of four queries
    queries: NDArray[np.float32]  # (threads, 4 * head_dim)
    attended: NDArray[np.float32]  # (threads, 4 * width)
    lengths: NDArray[np.int64]  # (threads, 4)
    chosen: NDArray[np.int64]  # (threads, feed_forward) rows of `up` that matter
    counts: NDArray[np.int64]  # (threads, 2) rows of `up` seen and skipped in decode, since the start
    active: NDArray[np.int64]  # (threads, padded feed_forward + 4) columns of `down` that meet a value
    words: NDArray[np.int32]  # (threads, padded feed_forward / 4 + 1) those values, four to a word
    column_sums: NDArray[np.int32]  # (hidden, padded)
    column_counts: NDArray[np.int64]  # (threads, 2) columns of `down` seen and not read in decode, since the start
    tile: NDArray[np.uint8]  # (threads, TILE_BYTES) unpacked weight rows
    block_sums: NDArray[np.int32]  # (threads, tokens rounded up * BLOCK_ROWS)
    logits: NDArray[np.float32]  # (vocab,)
    fine: NDArray[np.int8]  # (threads, padded hidden) second digits of the head's activations
    rest: NDArray[np.float32]  # (threads, hidden) what the first digits leave
    nearly: NDArray[np.float64]  # (vocab,) logits from the planes read so far
    candidates: NDArray[np.int64]  # (vocab,) rows that may still be among the largest, each thread's from its first row on
    best: NDArray[np.int64]  # (threads, MAX_TOP) rows with the largest such logits
    best_logits: NDArray[np.float32]  # (threads, MAX_TOP) their exact logits
    head_counts: NDArray[np.int64]  # (threads, 4) rows read since the start: upper four bits, middle two, lower two, exact


def padded(cols: int, width: int = 64) -> int:
    """Length of an activation row in kernel order: whole groups of 4 registers of `width` bytes."""
    group = max(128, 4 * width)
    return -(-cols // group) * group


def new_scratch(z: Sizes, chunk: int, context: int, threads: int) -> Scratch:
    """Scratch for steps of up to `chunk` tokens, by `threads` threads, over a cache of `context` tokens."""
    inner, width = z.heads * z.head_dim, -(-z.head_dim // 16) * 16
    widest, fours = max(z.hidden, inner, z.feed_forward), -(-chunk // 4) * 4
    rows = max(fours, threads)
    return Scratch(
        x=np.zeros((chunk, z.hidden), np.float32),
        codes=np.zeros((rows, padded(widest) + 256), np.int8),  # 256: base-3 rows meet up to four registers more than there are
        factors=np.ones(rows, np.float32),
        sums=np.zeros(rows, np.int32),
        qkv=np.zeros((chunk, inner + 2 * z.kv_heads * z.head_dim), np.float32),
        mixed=np.zeros((chunk, inner), np.float32),
        gate=np.zeros((chunk, z.feed_forward), np.float32),
        up=np.zeros((chunk, z.feed_forward), np.float32),
        normed=np.zeros((rows, widest), np.float32),
        scores=np.zeros((threads, 4, -(-context // 16) * 16), np.float32),
        queries=np.zeros((threads, 4 * z.head_dim), np.float32),
        attended=np.zeros((threads, 4 * width), np.float32),
        lengths=np.zeros((threads, 4), np.int64),
        chosen=np.zeros((threads, z.feed_forward), np.int64),
        counts=np.zeros((threads, 2), np.int64),
        active=np.zeros((threads, padded(z.feed_forward) + 4), np.int64),
        words=np.zeros((threads, padded(z.feed_forward) // 4 + 1), np.int32),
        column_sums=np.zeros(padded(z.hidden), np.int32),
        column_counts=np.zeros((threads, 2), np.int64),
        tile=np.zeros((threads, TILE_BYTES), np.uint8),
        block_sums=np.zeros((threads, fours * BLOCK_ROWS), np.int32),
        logits=np.zeros(z.vocab, np.float32),
        fine=np.zeros((threads, padded(z.hidden)), np.int8),
        rest=np.zeros((threads, z.hidden), np.float32),
        nearly=np.zeros(z.vocab, np.float64),
        candidates=np.zeros(z.vocab, np.int64),
        best=np.zeros((threads, MAX_TOP), np.int64),
        best_logits=np.zeros((threads, MAX_TOP), np.float32),
        head_counts=np.zeros((threads, 4), np.int64),
    )
