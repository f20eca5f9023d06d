"""Twin of kernels/attention.py, for all heads and tokens of a chunk."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import EVERYTHING
from ..kv_cache import ONE_PAGE, AnyCache, QuantisedCache, Table
from . import kv_cache

Floats = NDArray[np.float32]


def store(cache: AnyCache, layer: int, position: int, keys: Floats, values: Floats, table: Table = ONE_PAGE) -> None:
    """Put keys and values, (tokens, kv_heads, head_dim), at position and the following ones of a text."""
    if isinstance(cache, QuantisedCache):
        kv_cache.store(cache, layer, position, keys, values, table)
        return
    for t, p in enumerate(table.places(position, position + len(keys))):
        _floats(cache.keys)[layer, :, p // 16, :, p % 16] = keys[t]
        _floats(cache.values)[layer, :, p, : values.shape[2]] = values[t]


def _floats(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or float16 values where it holds their bits."""
    return array.view(np.float16) if array.dtype == np.uint16 else array


def stored(cache: AnyCache, layer: int, length: int, dim: int, table: Table = ONE_PAGE) -> tuple[Floats, Floats]:
    """Keys and values of the first `length` positions as attention reads them, each (kv_heads, length, dim)."""
    if isinstance(cache, QuantisedCache):
        return kv_cache.stored(cache, layer, length, dim, table)
    places = table.places(0, length)
    keys = _floats(cache.keys)[layer].swapaxes(2, 3)  # (kv_heads, blocks, 16, head_dim)
    values = _floats(cache.values)[layer, :, places, :dim].swapaxes(0, 1)
    return keys.reshape(len(keys), -1, dim)[:, places].astype(np.float32), values.astype(np.float32)


def attend(queries: Floats, keys: Floats, values: Floats, position: int, window: int = EVERYTHING) -> Floats:
    """Causal grouped-query attention.

    queries: (tokens, heads, head_dim), the first at `position`; keys, values: (kv_heads, >= position + tokens, head_dim).
    window: positions that a token sees, itself and those before it. Returns (tokens, heads * head_dim).
    """
    tokens, heads, dim = queries.shape
    group = heads // len(keys)
    out = np.empty((tokens, heads, dim), np.float32)
    for t in range(tokens):
        for head in range(heads):
            seen = slice(max(0, position + t + 1 - window), position + t + 1)
            scores = keys[head // group, seen] @ queries[t, head] / np.sqrt(np.float32(dim))
            weights = np.exp(scores - scores.max())
            out[t, head] = (weights / weights.sum()) @ values[head // group, seen]
    return out.reshape(tokens, heads * dim)
