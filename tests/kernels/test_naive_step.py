"""The twin of a step against a decoder in float64 that is written apart, over small models which have all that models may have.

Where float32 and float64 round an activation to two codes, a row is off by a code: that may happen, seldom. No kernel is compiled here.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from bitnet_kernels import arrays, control, group_rows, kv_cache
from bitnet_kernels.arrays import DOWN, FP4, GATE, GELU, INT4, INT8, RELU2, SILU, UP, K, O, Q, V
from bitnet_kernels.group_rows import Groups
from bitnet_kernels.naive import kv_cache as codes_of
from bitnet_kernels.naive import step
from numpy.typing import NDArray

from .cases import packed, ternary
from .group_cases import matrix
from .group_cases import packed as laid_out

Doubles = NDArray[np.float64]
CONTEXT, EPS, BLOCK = 48, 0.05, 16


class Shape(NamedTuple):
    hidden: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 20
    feed_forward: int = 160
    layers: int = 2
    vocab: int = 11
    activation: int = RELU2
    norms: tuple[int, ...] = (arrays.ATTENTION_NORM, arrays.FFN_NORM)
    rope: int = arrays.ROPE_HALVES
    rotated: int | None = None
    codes: tuple[int, int, int] = (INT8, INT8, INT8)  # of inputs: q, k, v, gate, up; o; down
    digits: int = 1
    parts: bool = False
    kept: int = 0
    hadamard: int = 0
    query_bits: int | None = None
    biases: bool = False
    folded: bool = False
    window: int = 0  # of the second layer, which has a table of rotations of its own then
    groups: Groups | None = None


EVERY_NORM = tuple(range(arrays.NORM_PLACES))
SUB_NORMS = (arrays.ATTENTION_NORM, arrays.ATTENTION_SUB_NORM, arrays.FFN_NORM, arrays.FFN_SUB_NORM)
SHAPES = {
    "plain": Shape(norms=SUB_NORMS),
    "every norm": Shape(norms=EVERY_NORM, activation=GELU, window=5),
    "pairs": Shape(rope=arrays.ROPE_PAIRS, rotated=12, biases=True, activation=SILU, norms=SUB_NORMS),
    "parts": Shape(parts=True, digits=2, activation=SILU),
    "four bits": Shape(codes=(INT4, INT8, FP4), kept=30, query_bits=4, norms=SUB_NORMS),
    "transformed": Shape(codes=(INT8, INT4, INT8), hadamard=1, norms=SUB_NORMS),
    "folds": Shape(folded=True, digits=1, parts=True),
    "groups": Shape(hidden=128, head_dim=32, feed_forward=192, groups=Groups(64, 64), folded=True, activation=SILU),
    "groups, two digits": Shape(hidden=128, head_dim=32, feed_forward=192, groups=Groups(64, 128), digits=2, activation=SILU),
}


class Model(NamedTuple):
    """What the twin takes, and the same as float64: matrices with their scales, and norm weights, by layer and place."""

    shape: Shape
    sizes: arrays.Sizes
    weights: arrays.Weights
    matrices: dict[tuple[int, int], Doubles]
    norms: dict[tuple[int, int], Doubles]
    head: Doubles


def packed_matrix(shape: Shape, rng: np.random.Generator, rows: int, cols: int) -> tuple[Doubles, NDArray[np.uint8], int]:
    """Weights, bytes that hold them, and where in those they begin."""
    if shape.groups:
        codes, scales = matrix(rng, rows, cols, shape.groups.weights)
        scales = rng.uniform(0.5, 1.5, scales.shape).astype(np.float16)
        weights = (codes.astype(np.float64) - 1) * np.repeat(scales.astype(np.float64), shape.groups.weights, 1)
        return weights, laid_out(codes, scales, group_rows.LINE, tail=0), group_rows.LINE
    weights = ternary(rng, rows, cols)
    filled = np.pad(weights, ((0, 0), (0, -cols % 128)), constant_values=2)  # codes 3: nothing may come of them
    return weights.astype(np.float64), packed(filled, 9, tail=0), 9


def row_scales(rng: np.random.Generator, scale: float, rows: int, which: int) -> tuple[list[int], list[float]]:
    """Ends of one to three parts of a matrix, one of a single row, and the scale of each. The next matrix's first end is below `rows`."""
    ends = [rows] if which == DOWN else [[1, rows // 2, rows], [rows // 3, rows], [2, rows]][which % 3]
    return ends, [float(np.float32(scale * rng.uniform(0.5, 1.5))) for _ in ends]


def new_model(shape: Shape, seed: int = 0) -> Model:
    rng, z = np.random.default_rng(seed), shape
    inner, kv = z.heads * z.head_dim, z.kv_heads * z.head_dim
    sides = {Q: (inner, z.hidden), K: (kv, z.hidden), V: (kv, z.hidden), O: (z.hidden, inner)}
    sides |= {GATE: (z.feed_forward, z.hidden), UP: (z.feed_forward, z.hidden), DOWN: (z.hidden, z.feed_forward)}
    data, at, matrices = [], 0, {}
    offsets, scales = np.zeros((z.layers, 7), np.int64), np.zeros((z.layers, 7), np.float32)
    part_at, ends, part_scales = np.zeros((z.layers if z.parts else 0, 7), np.int64), [], []
    for layer, which in np.ndindex(z.layers, 7):
        rows, cols = sides[which]
        weights, raw, start = packed_matrix(shape, rng, rows, cols)
        offsets[layer, which], scales[layer, which] = at + start, rng.uniform(0.5, 1.5) / math.sqrt(cols)
        data, at, of_rows = [*data, raw], at + len(raw), np.full(rows, float(scales[layer, which]))
        if z.parts:
            part_at[layer, which] = len(ends)
            own, own_scales = row_scales(rng, scales[layer, which], rows, which)
            of_rows = np.repeat(own_scales, np.diff([0, *own]))
            ends, part_scales = [*ends, *own], [*part_scales, *own_scales]
        matrices[layer, which] = weights * of_rows[:, None]
    widths = [z.hidden, inner, z.hidden, z.feed_forward, *[z.hidden] * 5, z.head_dim, z.head_dim, z.hidden, z.hidden]
    norm_at, norms, count = np.full((z.layers + 1, arrays.NORM_PLACES), -1), {}, 0
    for layer, place in [*((layer, place) for layer in range(z.layers) for place in z.norms), (z.layers, 0)]:
        norms[layer, place] = rng.uniform(0.5, 1.5, widths[place]).astype(np.float32).astype(np.float64)
        norm_at[layer, place], count = count, count + widths[place]
    angles = rng.uniform(0, 6, (2 * CONTEXT, (z.rotated or z.head_dim) // 2)).astype(np.float32)
    signs = np.where(rng.random(400) < 0.5, np.float32(-1), np.float32(1))
    fold_at = np.where(rng.random((z.layers + 1, 7)) < 0.3, -1, rng.integers(0, 200, (z.layers + 1, 7)))
    fold_at[:, 0] = [0, 7, 50]
    if z.groups:
        head, head_raw, head_at = packed_matrix(shape, rng, z.vocab, z.hidden)
    else:
        head, head_at = rng.standard_normal((z.vocab, z.hidden)).astype(np.float16).astype(np.float64), 4
        head_raw = np.concatenate([np.full(4, 0xFF, np.uint8), head.astype(np.float16).reshape(-1).view(np.uint8)])
    layers = np.arange(z.layers)
    weights = arrays.Weights(
        np.concatenate(data), offsets, scales, np.concatenate(list(norms.values())).astype(np.float32), norm_at, head_raw,
        head_offset=np.array([head_at]), head_file=np.array([-1]), cos=np.cos(angles), sin=np.sin(angles),
        rope_rows=CONTEXT * (layers > 0) * (z.window > 0), windows=np.where((layers > 0) & (z.window > 0), z.window, arrays.EVERYTHING),
        planes=arrays.new_planes(0, z.hidden), columns=np.zeros(0, np.uint8), columns_built=np.zeros(1, np.int64),
        part_at=part_at, part_ends=np.array(ends, np.int64), part_scales=np.array(part_scales, np.float32),
        groups=z.groups, head_groups=z.groups,
        biases=rng.standard_normal((z.layers, inner + 2 * kv)).astype(np.float32) if z.biases else None,
        folds=arrays.Folds(signs, fold_at, BLOCK) if z.folded else None,
    )  # fmt: skip
    sizes = arrays.Sizes(
        z.layers, z.hidden, z.heads, z.kv_heads, z.head_dim, z.feed_forward, z.vocab, z.activation, EPS, arrays.HEAD_F16, z.rope, z.digits,
        *z.codes, z.kept, 16, z.query_bits, z.hadamard, z.rotated,
    )  # fmt: skip
    return Model(shape, sizes, weights, matrices, norms, head)


def rounded(x: Doubles, kind: int) -> Doubles:
    """(tokens, n) as the codes of n values that have one factor tell them."""
    if kind == INT4:
        factor = math.sqrt(7) / np.abs(x).mean(-1, keepdims=True)
        return np.clip(np.rint(x * factor), -8, 7) / factor
    if kind == FP4:
        factor, values = 12 / np.abs(x).max(-1, keepdims=True), np.array([0, 1, 2, 3, 4, 6, 8, 12.0])
        return np.sign(x) * values[np.abs(np.abs(x * factor)[..., None] - values).argmin(-1)] / factor
    factor = 127 / np.abs(x).max(-1, keepdims=True)
    return np.rint(x * factor) / factor


def transformed(x: Doubles, n: int) -> Doubles:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(-1, n) @ h / math.sqrt(n)).reshape(x.shape)


class Decoder:
    """A text of a model, from its first token on."""

    def __init__(self, model: Model):
        self.model, self.z = model, model.shape

    def norm(self, layer: int, place: int, x: Doubles) -> Doubles:
        weight = self.model.norms.get((layer, place))
        return x if weight is None else weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)

    def input(self, x: Doubles, layer: int, which: int) -> Doubles:
        """What a projection multiplies. K and V have what Q has, and UP what GATE has."""
        z, folds = self.z, self.model.weights.folds
        owner = {int(K): int(Q), int(V): int(Q), int(UP): int(GATE)}.get(which, which)
        if folds is not None and (at := folds.at[layer, owner]) >= 0:
            x = transformed(x * folds.signs[at : at + x.shape[1]], BLOCK)
        if z.hadamard and which in (O, DOWN):
            x = transformed(x, x.shape[1] & -x.shape[1])
        if z.kept and which == O:
            x = np.where(np.abs(x) >= np.sort(np.abs(x))[:, -z.kept, None], x, 0)
        return self.codes(x, z.codes[1] if which == O else z.codes[2] if which == DOWN else z.codes[0])

    def codes(self, x: Doubles, kind: int) -> Doubles:
        size = self.z.groups.activations if self.z.groups else x.shape[1]
        whole = np.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)
        made = rounded(whole, kind)
        if self.z.digits == 2:
            made = made + rounded(whole - made, INT8)
        return made.reshape(len(x), -1)[:, : x.shape[1]]

    def linear(self, x: Doubles, layer: int, which: int) -> Doubles:
        return self.input(x, layer, which) @ self.model.matrices[layer, which].T

    def rotate(self, x: Doubles, layer: int) -> Doubles:
        """(tokens, heads, head_dim)."""
        w, out, turning = self.model.weights, x.copy(), self.z.rotated or self.z.head_dim
        first, half = w.rope_rows[layer], turning // 2
        cos, sin = (table[first : first + len(x), None].astype(np.float64) for table in (w.cos, w.sin))
        turns = x[..., :turning]
        a, b = (turns[..., :half], turns[..., half:]) if self.z.rope == arrays.ROPE_HALVES else (turns[..., ::2], turns[..., 1::2])
        out[..., :half], out[..., half:turning] = a * cos - b * sin, a * sin + b * cos
        return out

    def attend(self, q: Doubles, k: Doubles, v: Doubles, window: int) -> Doubles:
        group, out = self.z.heads // self.z.kv_heads, np.zeros(q.shape)
        for t, head in np.ndindex(q.shape[:2]):
            seen = slice(max(0, t + 1 - window), t + 1)
            weights = np.exp(k[seen, head // group] @ q[t, head] / math.sqrt(self.z.head_dim))
            out[t, head] = weights @ v[seen, head // group] / weights.sum()
        return out.reshape(len(q), -1)

    def layer(self, x: Doubles, layer: int) -> Doubles:
        z, w, tokens = self.z, self.model.weights, len(x)
        h, parts = self.norm(layer, arrays.ATTENTION_NORM, x), []
        for which, place in ((Q, arrays.Q_NORM), (K, arrays.K_NORM), (V, arrays.V_NORM)):
            parts.append(self.linear(self.norm(layer, place, h), layer, which))
        if w.biases is not None:
            sides = [part.shape[1] for part in parts]
            parts = [part + bias for part, bias in zip(parts, np.split(w.biases[layer], np.cumsum(sides)[:-1]), strict=True)]
        q, k, v = (part.reshape(tokens, -1, z.head_dim) for part in parts)
        q, k = self.norm(layer, arrays.Q_HEAD_NORM, q), self.norm(layer, arrays.K_HEAD_NORM, k)
        q, k = self.rotate(q, layer), self.rotate(k, layer)
        if z.query_bits:
            q = codes_of.dequantise(*codes_of.quantise(q.astype(np.float32), z.query_bits), z.query_bits).astype(np.float64)
        mixed = self.norm(layer, arrays.ATTENTION_SUB_NORM, self.attend(q, k, v, int(w.windows[layer])))
        x = x + self.norm(layer, arrays.ATTENTION_OUT_NORM, self.linear(mixed, layer, O))
        h = self.norm(layer, arrays.FFN_NORM, x)
        gate, up = (self.linear(self.norm(layer, p, h), layer, m) for p, m in ((arrays.GATE_NORM, GATE), (arrays.UP_NORM, UP)))
        act = {
            RELU2: lambda: np.maximum(gate, 0) ** 2,
            SILU: lambda: gate / (1 + np.exp(-gate)),
            GELU: lambda: gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))),
        }[z.activation]()
        down = self.linear(self.norm(layer, arrays.FFN_SUB_NORM, act * up), layer, DOWN)
        return x + self.norm(layer, arrays.FFN_OUT_NORM, down)

    def states(self, x: Doubles) -> Doubles:
        return self.norm(self.z.layers, 0, x)

    def logits(self, state: Doubles) -> Doubles:
        folds, x = self.model.weights.folds, state
        if folds is not None:
            at = folds.at[self.z.layers, 0]
            x = transformed(x * folds.signs[at : at + x.shape[1]], BLOCK)
        return (self.codes(x, INT8) if self.z.groups else x) @ self.model.head.T


def off(found: NDArray[Any], expected: Doubles) -> Doubles:
    """Of each row the largest difference, in units of the largest expected number of all."""
    return np.abs(found - expected).max(-1) / np.abs(expected).max()


@pytest.mark.parametrize("name", SHAPES)
def test_steps_of_two_texts(name: str) -> None:
    """14 tokens of one text; then four more, on two pages, beside two of another, whose logits, and the states of others, are wanted."""
    model = new_model(SHAPES[name])
    z, rng = model.shape, np.random.default_rng(1)
    texts = [rng.standard_normal((count, z.hidden)).astype(np.float32) for count in (18, 2)]
    cache = kv_cache.new_cache(z.layers, z.kv_heads, z.head_dim, 16, "f32", pages=4)
    for part in cache:
        part.fill(np.nan)
    scratch = arrays.new_scratch(model.sizes, 20, CONTEXT, 1, z.groups)
    scratch.tables[:2] = [[3, 1, 0], [2, 0, 0]]
    scratch.logits[:] = 7

    def run(pieces: list[control.Text], layers: tuple[int, int], wanted: list[control.Wanted]) -> None:
        words = control.new_control()
        words[[control.TOKENS, control.TEXTS, control.WANTED]] = sum(piece.tokens for piece in pieces), len(pieces), len(wanted)
        words[[control.FIRST_LAYER, control.LAST_LAYER]] = layers
        for numbers, given in ((scratch.texts, pieces), (scratch.wanted, wanted)):
            numbers[: len(given)] = np.array(given).reshape(len(given), 3)
        assert step.run_step(model.sizes, model.weights, cache, scratch, words) == 0

    scratch.x[:14] = texts[0][:14]
    run([control.Text(0, 14, 0)], (0, z.layers), [])
    first = scratch.x[:14].copy()
    scratch.x[2:6], scratch.x[6:8] = texts[0][14:], texts[1]
    pieces = [control.Text(2, 4, 14), control.Text(6, 2, 0)]
    run(pieces, (0, 1), [])
    run(pieces, (1, z.layers), [])
    found = [np.concatenate([first, scratch.x[2:6]]), scratch.x[6:8].copy()]
    run(
        pieces,
        (0, 0),
        [control.Wanted(7, 0, 3), control.Wanted(4, 5, 0), control.Wanted(2, control.STATE), control.Wanted(6, control.STATE)],
    )
    decoder, errors = Decoder(model), []
    for x, made in zip(texts, found, strict=True):
        expected = x.astype(np.float64)
        for layer in range(z.layers):
            expected = decoder.layer(expected, layer)
        errors += off(made, expected).tolist()
    print(name, sorted(errors)[::4])
    # Second digits flip often, by 1 of 127 * 254.
    assert sorted(errors)[12] < (1e-4 if z.digits == 2 else 2e-6) and max(errors) < 0.05
    states = decoder.states(np.stack([found[1][1], found[0][16], found[0][14], found[1][0]]).astype(np.float64))
    assert (off(scratch.logits[[3, 0]], decoder.logits(states[:2])) < 1e-3).all()
    assert (off(scratch.x[[2, 6]], states[2:]) < 1e-5).all()
    assert (scratch.logits[[1, 2]] == 7).all() and np.array_equal(scratch.x[7], found[1][1])
