"""Shapes that memory does not hold: a model of the same widths with fewer layers is measured, and the missing layers are added.

Layers are alike, and each token goes through them one after the other, so a token of L layers takes what a token of k layers takes, and
L - k times one layer more. Head, embedding, sampling of the top logits and what is outside kernels are in the measured part, as is
attention at every depth, which each layer does on a cache of its own. One layer's time is the mean of k, timed without the head after each
sample. The k layers must not stay in a cache from one token to the next, since L would not: k is the fewest whose weights are eight times
the last-level cache, and no fewer than 256 MB. (Three times, 96 MB, of which decode reads 60: 10 % too fast, docs/bench.md.)
"""

from typing import NamedTuple

import numpy as np
from bitnet_kernels import kv_cache

from bitnet_cli.commands.bench.shapes import Shape
from bitnet_cli.layer_table import layer_weights
from bitnet_cli.machine.cpu import last_cache_bytes
from bitnet_cli.machine.memory import available_bytes
from bitnet_cli.model.engine import CHUNK_TOKENS
from bitnet_cli.model.kernel_times import time_part
from bitnet_cli.model.sequence import Sequence

CACHES = 8  # times the last-level cache
LEAST = 256 << 20  # bytes of 2-bit weights
SHARE = 0.7  # of the free memory that a full run may take
TIMINGS = {"prefill": 3, "decode": 16}


class Layers(NamedTuple):
    """How many layers are measured, and how many the model has."""

    measured: int
    whole: int

    @property
    def projected(self) -> bool:
        return self.measured < self.whole

    @property
    def ratio(self) -> float:
        """What all layers are of the measured ones."""
        return self.whole / self.measured


def memory_bytes(shape: Shape, cache_type: str, context: int) -> int:
    """What a full run may take: the file, base-3 rows and columns beside it, planes of the head, and the KV cache."""
    weights = shape.ternary_weights()
    cache = kv_cache.cache_bytes(cache_type, shape.layers, shape.kv_heads, shape.head_dim, context)
    if shape.groups:
        return 2 * shape.file_bytes() + cache  # rows are laid out again
    return weights // 4 + weights // 5 + shape.layers * shape.hidden * shape.feed_forward // 4 + 3 * shape.vocab * shape.hidden + cache


def layers_to_measure(shape: Shape, need: int, forced: bool) -> Layers:
    """need: bytes of a full run; forced: project even if it fits."""
    free = available_bytes()
    if not forced and (free is None or need <= SHARE * free):
        return Layers(shape.layers, shape.layers)
    layer = layer_weights(shape) // 4
    enough = -(-max(LEAST, CACHES * last_cache_bytes()) // layer)
    # A small model, which a cache holds whole, can only be projected from as many layers as fill the same cache.
    return Layers(max(1, min(enough, shape.layers - 1)), shape.layers)


def layer_seconds(sequence: Sequence, prompt: bool, tokens: int, depth: int, top: int) -> float:
    """Seconds that one layer adds to a test: to a whole prompt of `tokens`, or to one decoded token, both after `depth`.

    A chunk, or a token, in the middle of the test stands for all: attention grows linearly with the position. In decode the head runs
    before each timing, as it does before the layers of the next token: it takes their place in the cache. top: of the head, as in the test.
    """
    layers = sequence.engine.config.layers
    count = min(CHUNK_TOKENS, tokens) if prompt else 1
    middle, timings = depth + (tokens - count) // 2, []
    for _ in range(TIMINGS["prefill" if prompt else "decode"]):
        if not prompt:
            time_part(sequence, 1, middle, 0, 1, top)
        timings.append(time_part(sequence, count, middle, layers, 0))
    return float(np.median(timings)) / layers * (tokens / count if prompt else 1)


def method(layers: Layers, shape: Shape) -> str:
    """How a projected figure came about, in a sentence."""
    size, cache = layers.measured * layer_weights(shape) // 4, last_cache_bytes()
    beside = "exceed" if size >= CACHES * cache else f"are less than {CACHES} times"
    return (
        f"{layers.measured} of {layers.whole} layers were run, with the whole head, on {size / 1e6:.0f} MB of weights, which {beside} the "
        f"{cache >> 20} MiB cache; each of the {layers.whole - layers.measured} others counts as the mean of these"
    )
