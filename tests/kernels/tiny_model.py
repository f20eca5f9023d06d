"""A small random model as the arrays that a decoder step works on, its KV cache and scratch, and ways to run it."""

from itertools import pairwise
from typing import Any, NamedTuple

import group_cases
import k_blocks
import numpy as np
from bitnet_kernels import arrays, control, kv_cache
from bitnet_kernels.angles import angles
from bitnet_kernels.group_rows import LINE, Groups
from bitnet_kernels.naive import attention as naive_attention
from bitnet_kernels.naive import step as naive_step
from bitnet_kernels.team import Team
from cases import packed, ternary
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Shape(NamedTuple):
    """hidden is a multiple of 32; the number of rows of a KV projection need not be one of 4."""

    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 640
    layers: int = 2
    vocab: int = 101
    activation: int = arrays.RELU2
    head_kind: int = arrays.HEAD_F16
    sub_norms: bool = True
    context: int = 48
    chunk: int = 13
    every_norm: bool = False  # also of each projection's input, of heads, and of what is added to the residual stream
    rope: int = arrays.ROPE_HALVES
    digits: int = 0  # of activations, and rows in parts with a scale each; 0: no parts
    window: int = 0  # tokens that the first layer sees, with rotations of another base; 0: all
    codes: tuple[int, int, int] = (arrays.INT8, arrays.INT8, arrays.INT8)  # of inputs: q, k, v, gate, up; o; down
    kept: int = 0  # largest inputs of o; 0: all
    hadamard: int = 0
    query_bits: int | None = None
    groups: Groups | None = None  # float16 scales, and activations, of so many; with 1 or 2 digits
    closed: float = 0.0  # share of hidden units whose gate has no weights, so that ReLU² never opens it


# All activations, sub-norms present and absent, each kind of head, 1 to 4 query heads a KV head, attention wider and narrower than hidden,
# a head_dim that is no multiple of 16, few open gates, widths that are no multiple of 128, rotations of neighbours.
SHAPES = {
    "relu2": Shape(),
    "silu": Shape(hidden=384, heads=6, feed_forward=512, activation=arrays.SILU, head_kind=arrays.HEAD_Q8_0, sub_norms=False),
    "wide": Shape(heads=3, kv_heads=3, head_dim=128, feed_forward=384, layers=3, vocab=67, head_kind=arrays.HEAD_F32),
    "one kv head": Shape(hidden=384, heads=4, kv_heads=1, head_dim=32, feed_forward=256, vocab=3, activation=arrays.SILU),
    "narrow heads": Shape(hidden=128, heads=32, kv_heads=8, head_dim=20, feed_forward=128, vocab=5),
    "every norm": Shape(heads=3, kv_heads=1, head_dim=48, activation=arrays.GELU, every_norm=True, window=9),
    "odd widths": Shape(hidden=352, heads=3, kv_heads=1, head_dim=20, feed_forward=676, rope=arrays.ROPE_PAIRS),
    "parts": Shape(hidden=384, heads=6, feed_forward=512, activation=arrays.SILU, sub_norms=False, digits=1),
    "two digits": Shape(hidden=352, heads=3, kv_heads=1, head_dim=20, feed_forward=676, activation=arrays.SILU, digits=2),
    "a4.8": Shape(codes=(arrays.INT4, arrays.INT8, arrays.INT8), kept=128),
    "fp4": Shape(hidden=352, heads=3, kv_heads=1, head_dim=20, feed_forward=676, codes=(arrays.FP4, arrays.FP4, arrays.INT8)),
    "v2": Shape(heads=3, head_dim=48, kv_heads=1, feed_forward=656, codes=(arrays.INT4, arrays.INT4, arrays.INT4), hadamard=1),
    "groups": Shape(hidden=384, heads=6, feed_forward=640, activation=arrays.SILU, sub_norms=False, groups=Groups(128)),
    "groups of 64": Shape(hidden=320, heads=5, kv_heads=1, feed_forward=704, groups=Groups(64), digits=2),
    "few gates": Shape(feed_forward=1024, layers=1, closed=0.85),
}


def head_bytes(weights: Floats, kind: int) -> NDArray[np.uint8]:
    """(vocab, hidden) float32 -> the bytes of that kind of head."""
    if kind in (arrays.HEAD_Q6_K, arrays.HEAD_Q4_K):
        return k_blocks.q6_k(weights) if kind == arrays.HEAD_Q6_K else k_blocks.q4_k(weights)
    if kind == arrays.HEAD_BF16:
        return (np.ascontiguousarray(weights).view("<u4") >> 16).astype("<u2").reshape(-1).view(np.uint8)
    if kind != arrays.HEAD_Q8_0:
        return weights.astype("<f4" if kind == arrays.HEAD_F32 else "<f2").reshape(-1).view(np.uint8)
    blocks = weights.reshape(-1, 32)
    scales = (np.abs(blocks).max(-1, keepdims=True) / 127).astype("<f2")
    values = np.rint(blocks / np.where(scales == 0, np.float16(1), scales).astype(np.float32)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), values.view(np.uint8)], -1).reshape(-1)


NO_PARTS = (np.zeros((0, arrays.PROJECTIONS), np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def random_parts(rows: list[int], scales: Floats, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """One to five parts a projection, some of one row, with scales near those of whole projections."""
    ends: list[NDArray[np.int64]] = []
    at = np.zeros((len(scales), arrays.PROJECTIONS), np.int64)
    for layer, which in np.ndindex(at.shape):
        at[layer, which] = sum(map(len, ends))
        inside = rng.integers(1, rows[which], which % 5) if rows[which] > 1 else []
        ends.append(np.unique([*inside, *([1] if which == 3 else []), rows[which]]).astype(np.int64))
    sizes = [len(e) for e in ends]
    return at, np.concatenate(ends), (np.repeat(scales.reshape(-1), sizes) * rng.uniform(0.5, 1.5, sum(sizes))).astype(np.float32)


def packed_matrix(
    shape: Shape, rng: np.random.Generator, rows: int, cols: int, closed: float | None = None
) -> tuple[int, NDArray[np.uint8]]:
    """Bytes that hold a random matrix, and where in them it begins. closed: share of rows of zeros."""
    if shape.groups:
        return LINE, group_cases.packed(*group_cases.matrix(rng, rows, cols, shape.groups.weights), LINE, tail=0)
    matrix = ternary(rng, rows, cols)
    if closed is not None:
        matrix[rng.random(rows) < closed] = 0
    # Past the columns of a row, codes 3: nothing may come of them.
    return 9, packed(np.pad(matrix, ((0, 0), (0, -cols % 128)), constant_values=2), 9, tail=0)


def random_weights(shape: Shape, rng: np.random.Generator) -> arrays.Weights:
    """Ternary weights at odd byte offsets of one array; scales that keep activations near 1."""
    inner, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = [(inner, shape.hidden), (kv, shape.hidden), (kv, shape.hidden), (shape.hidden, inner)]
    matrices += 2 * [(shape.feed_forward, shape.hidden)] + [(shape.hidden, shape.feed_forward)]
    sizes = [shape.hidden, inner if shape.sub_norms else 0, shape.hidden, shape.feed_forward if shape.sub_norms else 0]
    if shape.every_norm:
        sizes += [*[shape.hidden] * 5, shape.head_dim, shape.head_dim, shape.hidden, shape.hidden]
    parts, norms, at, norm_at = [], [], 0, 0
    offsets, norm_offsets = (
        np.zeros((shape.layers, arrays.PROJECTIONS), np.int64),
        np.full((shape.layers + 1, arrays.NORM_PLACES), -1, np.int64),
    )
    for layer in range(shape.layers):
        for which, (rows, cols) in enumerate(matrices):
            start, matrix = packed_matrix(shape, rng, rows, cols, shape.closed if which == arrays.GATE else None)
            parts.append(matrix)
            offsets[layer, which] = at + start
            at += len(matrix)
        for which, size in enumerate(sizes):
            if size:
                norm_offsets[layer, which] = norm_at
                norms.append(rng.uniform(0.5, 1.5, size))
                norm_at += size
    norm_offsets[shape.layers, 0] = norm_at
    norms.append(rng.uniform(0.5, 1.5, shape.hidden))
    usual = 0.02 if shape.groups else 1.0  # root of a group's mean squared scale
    scales = np.array([[1.2 / np.sqrt(cols) / usual for _, cols in matrices]] * shape.layers, np.float32)
    if shape.groups:
        head_at, head = packed_matrix(shape, rng, shape.vocab, shape.hidden)
    else:
        head_at, head = 6, head_bytes(rng.standard_normal((shape.vocab, shape.hidden)).astype(np.float32), shape.head_kind)
    tables = [angles(shape.context, shape.head_dim, base) for base in (10000.0, 100.0)]
    cos, sin = (np.concatenate(table) for table in zip(*tables, strict=True))
    sliding = np.arange(shape.layers) < (shape.window > 0)
    part_at, part_ends, part_scales = (
        random_parts([rows for rows, _ in matrices], scales, rng) if shape.digits and not shape.groups else NO_PARTS
    )
    return arrays.Weights(
        packed=np.concatenate(parts),
        offsets=offsets,
        scales=scales,
        part_at=part_at,
        part_ends=part_ends,
        part_scales=part_scales,
        norms=np.concatenate(norms).astype(np.float32),
        norm_offsets=norm_offsets,
        head=head if shape.groups else np.concatenate([np.full(head_at, 0xFF, np.uint8), head]),
        head_offset=np.array([head_at]),
        head_file=np.array([-1]),
        cos=cos,
        sin=sin,
        rope_rows=np.where(sliding, shape.context, 0),
        windows=np.where(sliding, shape.window, arrays.EVERYTHING),
        planes=arrays.new_planes(0, shape.hidden),
        columns=np.zeros(0, np.uint8),
        columns_built=np.zeros(1, np.int64),
        groups=shape.groups,
        head_groups=shape.groups,
    )


def soiled_scratch(sizes: arrays.Sizes, shape: Shape, threads: int) -> arrays.Scratch:
    """Scratch filled with NaN and 99: what is not written first must not be used. Only what is counted begins at zero."""
    scratch = arrays.new_scratch(sizes, shape.chunk, shape.context, threads, shape.groups)
    named = {name: array for name, array in scratch._asdict().items() if name not in ("counts", "turn", "groups")}
    for array in [*named.values(), *(scratch.groups or ())]:
        array.fill(np.nan if array.dtype == np.float32 else 99)
    return scratch


class Model:
    """One text over a random model. The same seed gives the same weights and inputs in every process.

    page: positions of a page of the KV cache, which then lie in any order; 0: the cache is one page.
    """

    def __init__(self, shape: Shape, threads: int = 1, seed: int = 7, cache: str = "f32", page: int = 0):
        rng = np.random.default_rng(seed)
        size = page or kv_cache.rounded(shape.context, 16)
        numbers = np.random.default_rng(1).permutation(-(-shape.context // size))
        self.shape = shape
        self.sizes = arrays.Sizes(
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            feed_forward=shape.feed_forward,
            vocab=shape.vocab,
            activation=shape.activation,
            norm_eps=1e-5,
            head_kind=shape.head_kind,
            rope=shape.rope,
            digits=max(1, shape.digits),
            codes=shape.codes[0],
            codes_o=shape.codes[1],
            codes_down=shape.codes[2],
            kept=shape.kept,
            hadamard=shape.hadamard,
            query_bits=shape.query_bits,
            page=size,
        )
        self.weights = random_weights(shape, rng)
        self.inputs = rng.standard_normal((shape.context, shape.hidden)).astype(np.float32)
        self.table = kv_cache.Table(numbers, size)
        self.cache = kv_cache.new_cache(shape.layers, shape.kv_heads, shape.head_dim, size, cache, len(numbers), threads if page else 0)
        for part in self.cache:
            part.fill({1: 0x55, 2: 0x7FC0, 4: np.nan}[part.itemsize])  # NaN as float16, bfloat16 and float32
        self.scratch = soiled_scratch(self.sizes, shape, threads)
        self.scratch.tables[0] = numbers
        self.team = Team(self.sizes, self.weights, self.cache, self.scratch, threads)

    def run(self, position: int, tokens: int, pieces: int = 1) -> tuple[Floats, Floats]:
        """Inputs position .. position + tokens - 1 through all layers, in `pieces` calls: (tokens, hidden) residual stream and logits."""
        self.scratch.x[:tokens] = self.inputs[position : position + tokens]
        edges = [self.shape.layers * piece // pieces for piece in range(pieces + 1)]
        for first, last in pairwise(edges):
            self.team.run(
                [control.Text(0, tokens, position)], first, last, [control.Wanted(tokens - 1)] if last == self.shape.layers else ()
            )
        return self.scratch.x[:tokens].copy(), self.scratch.logits[0].copy()

    def stored(self, layer: int, first: int, last: int) -> tuple[Floats, Floats]:
        """Copies of the keys and values at positions first .. last - 1, each (kv_heads, positions, head_dim)."""
        keys, values = naive_attention.stored(self.cache, layer, last, self.shape.head_dim, self.table)
        return keys[:, first:].copy(), values[:, first:].copy()

    def naive_layer(self, layer: int, x: Floats, position: int) -> Floats:
        """The twin's layer, over this model's cache."""
        return naive_step.run_layer(self.sizes, self.weights, self.cache, layer, x.copy(), position, self.table)

    def naive_run(self, position: int, tokens: int) -> tuple[Floats, Floats]:
        """As `run`, by the twin."""
        step: Any = np.array([tokens, 1, 0, self.shape.layers, 1], np.int64)
        self.scratch.texts[0] = control.Text(0, tokens, position)
        self.scratch.x[:tokens] = self.inputs[position : position + tokens]
        self.scratch.wanted[0] = control.Wanted(tokens - 1)
        naive_step.run_step(self.sizes, self.weights, self.cache, self.scratch, step)
        return self.scratch.x[:tokens].copy(), self.scratch.logits[0].copy()

    def plan(self, mixed: bool = True) -> list[tuple[int, int]]:
        """(position, tokens) of each step: whole chunks and single tokens in turn, or single tokens only, until 40 are done."""
        sizes = [self.shape.chunk, 1, 1, 2, 5, 1, 4, self.shape.chunk] if mixed else [1] * 40
        return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
