"""Twin of kernels/attention.py, for all heads and tokens of a chunk."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def attend(queries: Floats, keys: Floats, values: Floats, position: int) -> Floats:
    """Causal grouped-query attention.

    queries: (tokens, heads, head_dim), the first at `position`; keys, values: (kv_heads, >= position + tokens, head_dim).
    Returns (tokens, heads * head_dim).
    """
    tokens, heads, dim = queries.shape
    group = heads // len(keys)
    out = np.empty((tokens, heads, dim), np.float32)
    for t in range(tokens):
        for head in range(heads):
            seen = slice(0, position + t + 1)
            scores = keys[head // group, seen] @ queries[t, head] / np.sqrt(np.float32(dim))
            weights = np.exp(scores - scores.max())
            out[t, head] = (weights / weights.sum()) @ values[head // group, seen]
    return out.reshape(tokens, heads * dim)
