"""What a token costs: bytes that decode reads, by part, and operations. A multiplication and an addition are two operations.

Decode reads every weight that it uses once a token, so bytes decide; prefill uses each many times, so operations do. Operations are
those of the dense model: rows that meet exact zeros, and are skipped, count as done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from bitnet_kernels import arrays, kv_cache
from numpy.typing import NDArray

from bitnet_cli.layer_table import projection_shapes
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.head import bytes_read

if TYPE_CHECKING:
    from bitnet_cli.model.engine import Engine


class Traffic(NamedTuple):
    """Of one token, in bytes."""

    ternary: float
    head: float
    kv: float  # keys and values of the KV cache

    @property
    def total(self) -> float:
        return self.ternary + self.head + self.kv


class Operations(NamedTuple):
    """Of one token."""

    ternary: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        return self.ternary + self.head + self.attention


def reset_counts(engine: Engine) -> None:
    """Forget what was read and skipped so far: averages begin anew."""
    s = engine.arrays.scratch
    for counts in (s.counts, s.column_counts, s.head_counts):
        counts[:] = 0


def skipped_share(s: arrays.Scratch) -> float:
    """Share of the `up` projection's rows that decode did not read, because their gate was an exact zero. 0 where none can be."""
    seen, skipped = s.counts.sum(0).tolist()
    return skipped / seen if seen else 0.0


def skipped_columns_share(s: arrays.Scratch) -> float:
    """Share of the columns that decode did not read where it read `down` by columns; 0 where it never did."""
    seen, skipped = s.column_counts[0].tolist()
    return skipped / seen if seen else 0.0


def head_rows(engine: Engine) -> NDArray[np.int64]:
    """Rows of the head read by all searches for top logits, each of one token or several: upper six bits, last two, exact. (3,)."""
    rows: NDArray[np.int64] = engine.arrays.scratch.head_counts.sum(0)
    return rows


def bytes_a_token(engine: Engine, searched: bool = True) -> float:
    """Bytes of weights that decoding one token has read on average: ternary rows and head, without what was skipped. No KV cache.

    searched: for tokens whose top logits only were asked for, where the head has planes; else the head is read whole.
    """
    return sum(projection_bytes_a_token(engine)) + head_bytes_a_token(engine, searched)


def packed_bytes(engine: Engine) -> float:
    """Bytes of a packed weight: two bits, and its part of a scale where there are groups."""
    w = engine.arrays.weights
    return len(w.packed) / engine.config.ternary_weights if w.groups else 0.25


def projection_bytes_a_token(engine: Engine) -> list[float]:
    """The ternary part of `bytes_a_token` by projection, of all layers, in the order of arrays.Q to arrays.DOWN."""
    c, w, s = engine.config, engine.arrays.weights, engine.arrays.scratch
    built = int(w.base3_built[0]) / c.layers  # of the layers
    a_weight = built * len(w.base3) / c.ternary_weights + (1 - built) * packed_bytes(engine)
    sizes = [c.layers * rows * cols * a_weight for rows, cols in projection_shapes(c).values()]
    seen, by_columns = s.counts[:, 0].sum(), s.column_counts[0, 0]
    sizes[arrays.UP] *= 1 - skipped_share(s)
    columns = c.layers * c.hidden * c.feed_forward * (1 - skipped_columns_share(s)) / 4  # of 2 bits a weight
    sizes[arrays.DOWN] += float(by_columns / max(seen, 1)) * (columns - sizes[arrays.DOWN])
    return sizes


def head_bytes_a_token(engine: Engine, searched: bool = True) -> float:
    """The head's part of `bytes_a_token`."""
    sizes, weights = engine.arrays.sizes, engine.arrays.weights
    return float(bytes_read(sizes, len(weights.planes.ids), head_rows(engine)) * searched or engine.head_bytes)


def cache_bytes_at(engine: Engine, position: int) -> float:
    """Bytes of the KV cache that decoding a token at a position reads: keys and values up to its own, or of the window."""
    c = engine.config
    whole = 1 << 20
    each = kv_cache.cache_bytes(engine.cache_type, 1, c.kv_heads, c.head_dim, whole) / whole
    return sum(each * min(position + 1, int(window)) for window in engine.arrays.weights.windows)


def decode_traffic(engine: Engine, depth: int, tokens: int, searched: bool) -> Traffic:
    """Mean over `tokens` tokens decoded after `depth`, by the engine's counts of what was read; see `bytes_a_token`."""
    kv = cache_bytes_at(engine, depth + (tokens - 1) // 2)
    return Traffic(sum(projection_bytes_a_token(engine)), head_bytes_a_token(engine, searched), kv)


def prefill_traffic(engine: Engine, depth: int, tokens: int) -> Traffic:
    """Mean over a prompt of `tokens`: a chunk reads the packed weights once, and the keys and values before it; the prompt the head."""
    c, chunks = engine.config, -(-tokens // engine.batch)
    kv = sum(cache_bytes_at(engine, min(depth + (i + 1) * engine.batch, depth + tokens) - 1) for i in range(chunks))
    return Traffic(c.ternary_weights * packed_bytes(engine) * chunks / tokens, head_bytes_a_token(engine, False) / tokens, kv / tokens)


def operations(c: ModelConfig, depth: int, tokens: int, logits: int) -> Operations:
    """Mean over `tokens` tokens after `depth`, of which `logits` get logits."""
    seen = sum(min(depth + (tokens + 1) / 2, kind.window or float("inf")) for kind in c.kinds)
    return Operations(2.0 * c.ternary_weights, 2.0 * c.vocab * c.hidden * logits / tokens, 4.0 * c.inner * seen)


class Work(NamedTuple):
    """Of one kernel in a token."""

    bytes: float
    operations: float


def kernel_work(engine: Engine, position: int, tokens: int, logits: float, searched: bool) -> dict[str, Work]:
    """Projections, attention and head -> their work for a token, in steps of `tokens` from `position` on. logits: per token.

    One token: by the engine's counts of what was read, as `decode_traffic`.
    """
    c = engine.config
    weights = {name: float(c.layers * rows * cols) for name, (rows, cols) in projection_shapes(c).items()}
    sizes = projection_bytes_a_token(engine) if tokens == 1 else [count * packed_bytes(engine) / tokens for count in weights.values()]
    work = {name: Work(size, 2 * count) for (name, count), size in zip(weights.items(), sizes, strict=True)}
    work["attention"] = Work(cache_bytes_at(engine, position + tokens - 1) / tokens, operations(c, position, tokens, 1).attention)
    work["head"] = Work(head_bytes_a_token(engine, searched) * logits, 2.0 * c.vocab * c.hidden * logits)
    return work
