"""What a token costs: bytes that decode reads, by part, and operations. A multiplication and an addition are two operations.

Decode reads every weight that it uses once a token, so bytes decide; prefill uses each many times, so operations do. Operations are
those of the dense model: rows that meet exact zeros, and are skipped, count as done.
"""

from typing import NamedTuple

from bitnet_cli.layer_table import projection_shapes
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.decoder import CHUNK, Decoder


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


def decode_traffic(decoder: Decoder, depth: int, tokens: int, searched: bool) -> Traffic:
    """Mean over `tokens` tokens decoded after `depth`, by the decoder's counts of what was read; see Decoder.bytes_a_token."""
    kv = decoder.cache_bytes_at(depth + (tokens - 1) // 2)
    return Traffic(decoder.ternary_bytes_a_token(), decoder.head_bytes_a_token(searched), kv)


def prefill_traffic(decoder: Decoder, depth: int, tokens: int) -> Traffic:
    """Mean over a prompt of `tokens`: a chunk reads the weights once, at 2 bits, and the keys and values before it; the prompt the head."""
    c, chunks = decoder.config, -(-tokens // CHUNK)
    kv = sum(decoder.cache_bytes_at(min(depth + (i + 1) * CHUNK, depth + tokens) - 1) for i in range(chunks))
    return Traffic(c.ternary_weights / 4 * chunks / tokens, decoder.head_bytes_a_token(False) / tokens, kv / tokens)


def operations(c: ModelConfig, depth: int, tokens: int, logits: int) -> Operations:
    """Mean over `tokens` tokens after `depth`, of which `logits` get logits."""
    seen = sum(min(depth + (tokens + 1) / 2, kind.window or float("inf")) for kind in c.kinds)
    return Operations(2.0 * c.ternary_weights, 2.0 * c.vocab * c.hidden * logits / tokens, 4.0 * c.inner * seen)


class Work(NamedTuple):
    """Of one kernel in a token."""

    bytes: float
    operations: float


def kernel_work(decoder: Decoder, position: int, tokens: int, logits: float, searched: bool) -> dict[str, Work]:
    """Projections, attention and head -> their work for a token, in steps of `tokens` from `position` on. logits: per token.

    One token: by the decoder's counts of what was read, as `decode_traffic`.
    """
    c = decoder.config
    weights = {name: float(c.layers * rows * cols) for name, (rows, cols) in projection_shapes(c).items()}
    sizes = decoder.projection_bytes_a_token() if tokens == 1 else [count / 4 / tokens for count in weights.values()]
    work = {name: Work(size, 2 * count) for (name, count), size in zip(weights.items(), sizes, strict=True)}
    work["attention"] = Work(decoder.cache_bytes_at(position + tokens - 1) / tokens, operations(c, position, tokens, 1).attention)
    work["head"] = Work(decoder.head_bytes_a_token(searched) * logits, 2.0 * c.vocab * c.hidden * logits)
    return work
