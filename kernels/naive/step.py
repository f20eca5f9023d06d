"""Twin of kernels/step.py: one step of the decoder in NumPy, reading like the formulas. One thread."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import (
    ATTENTION_NORM,
    ATTENTION_SUB_NORM,
    DOWN,
    FFN_NORM,
    FFN_SUB_NORM,
    GATE,
    UP,
    Cache,
    K,
    O,
    Q,
    Scratch,
    Sizes,
    V,
    Weights,
)
from ..control import FIRST_LAYER, LAST_LAYER, POSITION, TOKENS, WANT_LOGITS
from . import attention, dense, glu, norm, rope, ternary
from .quantise import quantise

Floats = NDArray[np.float32]


def _norm(z: Sizes, w: Weights, layer: int, place: int, x: Floats) -> Floats:
    at = int(w.norm_offsets[layer, place])
    return x if at < 0 else norm.rms_norm(x, w.norms[at : at + x.shape[-1]], z.norm_eps)


def _project(w: Weights, layer: int, which: int, x: Floats, rows: int) -> Floats:
    """(tokens, cols) float32 -> int8 -> (tokens, rows) float32."""
    codes, factors = quantise(x)
    weights = ternary.unpack(w.packed, int(w.offsets[layer, which]), rows, x.shape[1])
    y: Floats = ternary.matmul(weights, codes).astype(np.float32) * (w.scales[layer, which] / factors)[:, None]
    return y


def run_layer(z: Sizes, w: Weights, cache: Cache, layer: int, x: Floats, position: int) -> Floats:
    """x: (tokens, hidden) float32, the residual stream; returns it after the layer. The cache gets the tokens' keys and values."""
    tokens, inner, kv = len(x), z.heads * z.head_dim, z.kv_heads * z.head_dim
    places = slice(position, position + tokens)
    n = _norm(z, w, layer, ATTENTION_NORM, x)
    q = _project(w, layer, Q, n, inner).reshape(tokens, z.heads, z.head_dim)
    k = _project(w, layer, K, n, kv).reshape(tokens, z.kv_heads, z.head_dim)
    v = _project(w, layer, V, n, kv).reshape(tokens, z.kv_heads, z.head_dim)
    q, k = (rope.rotate(a, w.cos[places], w.sin[places]) for a in (q, k))
    attention.store(cache, layer, position, k, v)
    mixed = attention.attend(q, *attention.stored(cache, layer, position + tokens), position)
    x = x + _project(w, layer, O, _norm(z, w, layer, ATTENTION_SUB_NORM, mixed), z.hidden)
    n = _norm(z, w, layer, FFN_NORM, x)
    gate, up = _project(w, layer, GATE, n, z.feed_forward), _project(w, layer, UP, n, z.feed_forward)
    h = _norm(z, w, layer, FFN_SUB_NORM, glu.gated(gate, up, z.activation))
    return x + _project(w, layer, DOWN, h, z.hidden)


def run_step(z: Sizes, w: Weights, cache: Cache, s: Scratch, control: NDArray[np.int64], thread: int = 0, threads: int = 1) -> None:
    """As kernels/step.py `run_step`; thread and threads are there for the same signature."""
    tokens = int(control[TOKENS])
    x = s.x[:tokens]
    for layer in range(int(control[FIRST_LAYER]), int(control[LAST_LAYER])):
        x[:] = run_layer(z, w, cache, layer, x, int(control[POSITION]))
    if control[WANT_LOGITS]:
        last = _norm(z, w, z.layers, 0, x[-1])
        dense.head_matvec(w.head, int(w.head_offset[0]), z.head_kind, last, s.logits)
