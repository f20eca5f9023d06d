"""Twin of kernels/step.py: one step of the decoder in NumPy, reading like the formulas. One thread."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import (
    ATTENTION_NORM,
    ATTENTION_OUT_NORM,
    ATTENTION_SUB_NORM,
    DOWN,
    FFN_NORM,
    FFN_OUT_NORM,
    FFN_SUB_NORM,
    GATE,
    GATE_NORM,
    K_HEAD_NORM,
    K_NORM,
    Q_HEAD_NORM,
    Q_NORM,
    ROPE_PAIRS,
    UP,
    UP_NORM,
    V_NORM,
    K,
    O,
    Q,
    Scratch,
    Sizes,
    V,
    Weights,
    packed_width,
)
from ..control import FIRST_LAYER, LAST_LAYER, STATE, TEXTS, WANTED, Text
from ..kv_cache import AnyCache, Table
from . import attention, dense, glu, grouped, kv_cache, norm, rope, ternary
from .folds import fold
from .inputs import hadamard, keep_largest
from .quantise import quantise

Floats = NDArray[np.float32]


INPUT_OF = {K: Q, V: Q, UP: GATE}  # projections that share an input with another


def _norm(z: Sizes, w: Weights, layer: int, place: int, x: Floats) -> Floats:
    at = int(w.norm_offsets[layer, place])
    return x if at < 0 else norm.rms_norm(x, w.norms[at : at + x.shape[-1]], z.norm_eps)


def _project(z: Sizes, w: Weights, layer: int, which: int, x: Floats, rows: int) -> Floats:
    """(tokens, cols) float32 -> codes, in one digit or two -> (tokens, rows) float32."""
    y: Floats
    x = fold(w.folds, layer, INPUT_OF.get(which, which), x)
    if which in (O, DOWN) and z.hadamard:
        x = hadamard(x)
    if which == O and z.kept:
        x = keep_largest(x, z.kept)
    if w.groups:
        y = w.scales[layer, which] * grouped.project(w.packed, int(w.offsets[layer, which]), rows, x, w.groups, z.digits)
        return y
    codes, factors = quantise(x, {O: z.codes_o, DOWN: z.codes_down}.get(which, z.codes))
    weights = ternary.unpack(w.packed, int(w.offsets[layer, which]), rows, packed_width(x.shape[1]))[:, : x.shape[1]]
    scales = _scales(w, layer, which, rows)
    y = ternary.matmul(weights, codes).astype(np.float32) * (scales / factors[:, None])
    if z.digits == 2:
        scaled = x * factors[:, None]
        fine, fine_factors = quantise(scaled - np.rint(scaled))
        y += ternary.matmul(weights, fine).astype(np.float32) * (scales / (factors * fine_factors)[:, None])
    return y


def _scales(w: Weights, layer: int, which: int, rows: int) -> Floats:
    """One for all rows, or each row's."""
    if not len(w.part_at):
        return w.scales[layer, which : which + 1]
    first = last = int(w.part_at[layer, which])
    while w.part_ends[last] < rows:
        last += 1
    return np.repeat(w.part_scales[first : last + 1], np.diff(w.part_ends[first : last + 1], prepend=0))


def attention_inputs(z: Sizes, w: Weights, layer: int, x: Floats) -> Floats:
    """x: (tokens, hidden) float32, the residual stream -> queries, keys and values before RoPE, side by side as Scratch.qkv has them."""
    inner, kv = z.heads * z.head_dim, z.kv_heads * z.head_dim
    n = _norm(z, w, layer, ATTENTION_NORM, x)
    norms, rows = {Q: Q_NORM, K: K_NORM, V: V_NORM}, {Q: inner, K: kv, V: kv}
    made = [_project(z, w, layer, which, _norm(z, w, layer, norms[which], n), rows[which]) for which in (Q, K, V)]
    if w.biases is not None:
        made = [part + bias for part, bias in zip(made, np.split(w.biases[layer], [inner, inner + kv]), strict=True)]
    q, k, v = (part.reshape(len(x), -1, z.head_dim) for part in made)
    q, k = _norm(z, w, layer, Q_HEAD_NORM, q), _norm(z, w, layer, K_HEAD_NORM, k)
    return np.concatenate([part.reshape(len(x), -1) for part in (q, k, v)], -1)


def rotated(z: Sizes, w: Weights, layer: int, qkv: Floats, position: int) -> tuple[Floats, Floats, Floats]:
    """Queries and keys after RoPE, and values, each (tokens, heads, head_dim)."""
    places = slice(w.rope_rows[layer] + position, w.rope_rows[layer] + position + len(qkv))
    q, k, v = np.split(qkv.reshape(len(qkv), -1, z.head_dim), [z.heads, z.heads + z.kv_heads], 1)
    rotate = rope.rotate_pairs if z.rope == ROPE_PAIRS else rope.rotate
    turning = z.rotated or z.head_dim
    q, k = (np.concatenate([rotate(a[..., :turning], w.cos[places], w.sin[places]), a[..., turning:]], -1) for a in (q, k))
    if z.query_bits:
        q = kv_cache.dequantise(*kv_cache.quantise(q, z.query_bits), z.query_bits)
    return q, k, v


def after_attention(z: Sizes, w: Weights, layer: int, x: Floats, mixed: Floats) -> Floats:
    """The residual stream with what attention gave, (tokens, heads * head_dim)."""
    out = _project(z, w, layer, O, _norm(z, w, layer, ATTENTION_SUB_NORM, mixed), z.hidden)
    return x + _norm(z, w, layer, ATTENTION_OUT_NORM, out)


def hidden_units(z: Sizes, w: Weights, layer: int, x: Floats) -> Floats:
    """(tokens, feed_forward): the gated units of the feed-forward block."""
    n = _norm(z, w, layer, FFN_NORM, x)
    gate = _project(z, w, layer, GATE, _norm(z, w, layer, GATE_NORM, n), z.feed_forward)
    up = _project(z, w, layer, UP, _norm(z, w, layer, UP_NORM, n), z.feed_forward)
    return glu.gated(gate, up, z.activation)


def after_feed_forward(z: Sizes, w: Weights, layer: int, x: Floats, units: Floats) -> Floats:
    """The residual stream with what the feed-forward block gave."""
    h = _norm(z, w, layer, FFN_SUB_NORM, units)
    return x + _norm(z, w, layer, FFN_OUT_NORM, _project(z, w, layer, DOWN, h, z.hidden))


def run_layer(z: Sizes, w: Weights, cache: AnyCache, layer: int, x: Floats, position: int, table: Table) -> Floats:
    """x: (tokens, hidden) float32, the residual stream of a text; returns it after the layer. The cache gets its keys and values."""
    q, k, v = rotated(z, w, layer, attention_inputs(z, w, layer, x), position)
    attention.store(cache, layer, position, k, v, table)
    stored = attention.stored(cache, layer, position + len(x), z.head_dim, table)
    x = after_attention(z, w, layer, x, attention.attend(q, *stored, position, int(w.windows[layer])))
    return after_feed_forward(z, w, layer, x, hidden_units(z, w, layer, x))


def logits(z: Sizes, w: Weights, state: Floats, out: Floats) -> None:
    """out: (vocab,) float32 = the head times a state (hidden,) after the output norm."""
    if w.head_groups:
        out[:] = grouped.project(w.head, int(w.head_offset[0]), z.vocab, state[None], w.head_groups, z.digits)[0]
    else:
        dense.head_matvec(w.head, int(w.head_offset[0]), z.head_kind, state, out)


def run_step(z: Sizes, w: Weights, cache: AnyCache, s: Scratch, control: NDArray[np.int64], *_: int) -> int:
    """As kernels/step.py `serve` for thread 0; the numbers that it takes are not needed."""
    for number in range(int(control[TEXTS])):
        text, table = Text(*s.texts[number].tolist()), Table(s.tables[number], z.page)
        x = s.x[text.row : text.row + text.tokens]
        for layer in range(int(control[FIRST_LAYER]), int(control[LAST_LAYER])):
            x[:] = run_layer(z, w, cache, layer, x, text.position, table)
    for row, top, place in s.wanted[: int(control[WANTED])].tolist():
        state = _norm(z, w, z.layers, 0, s.x[row : row + 1])
        if top == STATE:
            s.x[row] = state[0]
        else:
            logits(z, w, fold(w.folds, z.layers, 0, state)[0], s.logits[place])
    return 0
