"""A model of a few rows with the layout of one that runs, for self_test.py: its frame has the same types, so the same code runs over it.

In: the arrays of an engine. Out: arrays of one layer, whose numbers are the same in every process; nothing of a file is read. Whatever
chooses a way through the kernels is as in the model: kinds of codes, of norms, of head and cache, scales of rows and groups, folds, the
window of a layer that has one, and the columns that are left over after the last whole 128.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from bitnet_kernels import arrays, kv_cache
from bitnet_kernels.angles import angles
from bitnet_kernels.group_rows import Groups, lay_out, matrix_bytes
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

HIDDEN, FEED_FORWARD = 256, 512  # and what the model's have over the last 128; 256 is a block of q6_K, of groups, and the most of folds
VOCAB = 131
CONTEXT = 32
TOKENS = 19  # of a step: two rounds of sixteen rows, and an odd rest
WINDOW = 9
MOST_HEADS = 4  # a KV head
_TRITS = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8)
# Bytes of a head's block at which a float16 number stands; all others may be anything.
_SCALES_AT = {arrays.HEAD_Q8_0: (0,), arrays.HEAD_Q4_0: (0,), arrays.HEAD_Q6_K: (208,), arrays.HEAD_Q4_K: (0, 2)}


class MicroModel(NamedTuple):
    """As engine.Arrays, and what a step begins with."""

    sizes: arrays.Sizes
    weights: arrays.Weights
    cache: kv_cache.AnyCache
    scratch: arrays.Scratch
    inputs: Floats  # (TOKENS, hidden)
    table: kv_cache.Table


class Numbers:
    """A sequence of numbers that look random, the same everywhere, made a hundred times as quickly as NumPy's generators are set up."""

    def __init__(self) -> None:
        self._at = 1

    def words(self, count: int) -> NDArray[np.uint32]:
        """(count,) uint32: the finaliser of MurmurHash3 over consecutive numbers."""
        x = np.arange(self._at, self._at + count, dtype=np.uint32)
        self._at += count
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        return x ^ x >> np.uint32(16)

    def floats(self, count: int, low: float, high: float) -> Floats:
        """(count,) float32, uniform."""
        return (self.words(count) * np.float32((high - low) / 2**32) + np.float32(low)).astype(np.float32)

    def ternary(self, rows: int, cols: int) -> Bytes:
        """I2_S rows of -1, 0 and 1."""
        size = rows * arrays.packed_width(cols) // 4
        return _TRITS[self.words(-(-size // 4)).view(np.uint8)[:size] % 81]

    def grouped(self, rows: int, cols: int, group: int) -> Bytes:
        """A matrix of group_rows.py: codes 0 to 3, scales around 0.02."""
        out = np.empty(matrix_bytes(rows, cols, group), np.uint8)
        scales = self.floats(rows * cols // group, 0.01, 0.03).astype(np.float16)
        lay_out(self.words(rows * cols // 16).reshape(rows, -1), scales.reshape(rows, -1), out)
        return out

    def head(self, kind: int, rows: int, cols: int) -> Bytes:
        """A matrix of one of the kinds of arrays.HEAD_BLOCKS."""
        values = self.floats(rows * cols, -1, 1)
        if kind == arrays.HEAD_F32:
            return values.view(np.uint8)
        if kind == arrays.HEAD_F16:
            return values.astype(np.float16).view(np.uint8)
        if kind == arrays.HEAD_BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        weights, size = arrays.HEAD_BLOCKS[kind]
        blocks = values.view(np.uint8)[: rows * cols // weights * size].reshape(-1, size)
        for at in _SCALES_AT[kind]:
            blocks[:, at : at + 2] = self.floats(len(blocks), 0.001, 0.01).astype(np.float16).view(np.uint8).reshape(-1, 2)
        return blocks.reshape(-1)


def _sizes(z: arrays.Sizes) -> arrays.Sizes:
    """Those of the micro-model."""
    group = min(z.heads // z.kv_heads, MOST_HEADS)
    inner, most = z.heads * z.head_dim, z.kv_heads
    # As many KV heads as it takes for rows of O to end as the model's do.
    kv_heads = next((n for n in range(1, most) if (n * group * z.head_dim - inner) % 256 == 0), min(most, 2))
    return z._replace(
        layers=1,
        hidden=HIDDEN + z.hidden % 128,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        feed_forward=FEED_FORWARD + z.feed_forward % 128,
        vocab=VOCAB,
        kept=max(1, round(z.kept / inner * kv_heads * group * z.head_dim)) if z.kept else 0,
    )


def shapes(z: arrays.Sizes) -> list[tuple[int, int]]:
    """(rows, cols) of a layer's projections, in the order of arrays.Q .. arrays.DOWN."""
    inner, kv = z.heads * z.head_dim, z.kv_heads * z.head_dim
    wide = (z.feed_forward, z.hidden)
    return [(inner, z.hidden), (kv, z.hidden), (kv, z.hidden), (z.hidden, inner), wide, wide, (z.hidden, z.feed_forward)]


def _norms(z: arrays.Sizes, w: arrays.Weights, numbers: Numbers) -> tuple[Floats, NDArray[np.int64]]:
    """Norms where the model has some."""
    inner, small = z.heads * z.head_dim, {arrays.Q_HEAD_NORM: z.head_dim, arrays.K_HEAD_NORM: z.head_dim}
    width = {arrays.ATTENTION_SUB_NORM: inner, arrays.FFN_SUB_NORM: z.feed_forward, **small}
    at, size = np.full((2, arrays.NORM_PLACES), -1, np.int64), 0
    for place in range(arrays.NORM_PLACES):
        if (w.norm_offsets[:-1, place] >= 0).any():
            at[0, place] = size
            size += width.get(place, z.hidden)
    at[1, 0] = size
    return numbers.floats(size + z.hidden, 0.5, 1.5), at


def _parts(rows: Sequence[int], scales: Floats) -> dict[str, Any]:
    """Two parts of each projection, with scales of their own (parts.py)."""
    ends = np.array([end for count in rows for end in (count // 3, count)], np.int64)
    factors = np.tile(np.array([0.75, 1.25], np.float32), len(rows))
    at = np.arange(0, len(ends), 2, dtype=np.int64)[None]
    return {"part_at": at, "part_ends": ends, "part_scales": np.repeat(scales[0], 2) * factors}


def _folds(every: Sequence[tuple[int, int]], folds: arrays.Folds | None, numbers: Numbers) -> arrays.Folds | None:
    """Signs, and the projections, those of any layer, and the head where the model has them folded."""
    if folds is None:
        return None
    signs = np.where(numbers.words(max(cols for _, cols in every)) & np.uint32(1), np.float32(1), np.float32(-1))
    layer: NDArray[np.bool_] = np.logical_or.reduce(folds.at[:-1] >= 0)
    head = np.full(len(layer), folds.at[-1, 0] >= 0)
    return arrays.Folds(signs, np.stack([layer, head]).astype(np.int64) - 1, min(folds.block, HIDDEN))


def _weights(z: arrays.Sizes, w: arrays.Weights, numbers: Numbers) -> arrays.Weights:
    every = shapes(z)

    def matrix(rows: int, cols: int, groups: Groups | None) -> Bytes:
        return numbers.ternary(rows, cols) if groups is None else numbers.grouped(rows, cols, groups.weights)

    matrices = [matrix(rows, cols, w.groups) for rows, cols in every]
    ends = np.cumsum([len(part) for part in matrices])
    scales = np.array([[(50 if w.groups else 1.2) / np.sqrt(cols) for _, cols in every]], np.float32)
    norms, norm_offsets = _norms(z, w, numbers)
    cos, sin = angles(CONTEXT, z.rotated or z.head_dim, 10000.0)
    rows = [rows for rows, _ in every]
    parts = _parts(rows, scales) if len(w.part_at) else {}
    return w._replace(
        packed=np.concatenate(matrices),
        offsets=(ends - [len(part) for part in matrices])[None].astype(np.int64),
        scales=scales,
        norms=norms,
        norm_offsets=norm_offsets,
        head=numbers.head(z.head_kind, z.vocab, z.hidden) if w.head_groups is None else matrix(z.vocab, z.hidden, w.head_groups),
        head_offset=np.zeros(1, np.int64),
        head_file=np.array([-1]),
        cos=cos,
        sin=sin,
        rope_rows=np.zeros(1, np.int64),
        windows=np.array([WINDOW if (w.windows < arrays.EVERYTHING).any() else arrays.EVERYTHING]),
        planes=arrays.new_planes(z.vocab if len(w.planes.scales) else 0, z.hidden),
        columns=np.zeros(0, np.uint8),
        columns_built=np.zeros(1, np.int64),
        base3=np.zeros(0, np.uint8),
        base3_offsets=np.zeros((0, arrays.PROJECTIONS), np.int64),
        base3_built=np.zeros(1, np.int64),
        biases=None if w.biases is None else numbers.floats(rows[0] + 2 * rows[1], -1, 1)[None],
        folds=_folds(every, w.folds, numbers),
        **parts,
    )


def micro_model(sizes: arrays.Sizes, weights: arrays.Weights, cache_type: str) -> MicroModel:
    """The micro-model of a model."""
    numbers, z = Numbers(), _sizes(sizes)
    w, groups = _weights(z, weights, numbers), weights.groups or weights.head_groups
    pages = -(-CONTEXT // z.page)
    spare = 1 if z.page < kv_cache.BLOCK and pages > 1 else 0
    return MicroModel(
        z,
        w,
        kv_cache.new_cache(1, z.kv_heads, z.head_dim, z.page, cache_type, pages, spare),
        arrays.new_scratch(z, TOKENS, CONTEXT, 1, groups),
        numbers.floats(TOKENS * z.hidden, -1.7, 1.7).reshape(TOKENS, -1),
        kv_cache.Table(np.arange(pages)[::-1].copy(), z.page),
    )
