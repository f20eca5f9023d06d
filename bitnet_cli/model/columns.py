"""The `down` projections stored by columns: when that pays, and how it is made.

In a ReLU² model most inputs of `down` are exact zeros in decode; their columns need not be read (kernels/columns.py). Rows are kept for
prefill, so the columns are a second copy, 4.4 MB a layer for BitNet 2B-4T, made once the model has shown that it is sparse.
"""

import numpy as np
from bitnet_kernels import arrays, isa, kv_cache
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

from bitnet_cli.machine.memory import available_bytes, zeros_on_huge_pages
from bitnet_cli.machine.threads import split
from bitnet_cli.model.config import ModelConfig

_TURN = Entry("columns", "transpose_rows")
SMALLEST_TERNARY = 64 << 20  # bytes of all ternary weights: smaller models live in the cache, where rows are read twice as fast as columns
DECIDE_AFTER = 8  # tokens decoded
SPARSE = 0.4  # share of hidden units closed by their gate from which on columns pay, with some margin (docs/log.md#columns-down-meet-zeros)
SPARSE_BESIDE_BASE3 = 0.6  # the same where rows are read in base 3


def _layer_bytes(hidden: int, feed_forward: int) -> int:
    return arrays.padded(feed_forward, isa.width()) * _blocks(hidden) * isa.width()


def _blocks(hidden: int) -> int:
    """Of output rows: those of a register of packed bytes."""
    return -(-hidden // (4 * isa.width()))


def room(sizes: arrays.Sizes) -> NDArray[np.uint8]:
    """Room for the columns of a small model, wherever the system gives it."""
    return kv_cache.zeros(sizes.layers * _layer_bytes(sizes.hidden, sizes.feed_forward), np.uint8)


def columns_for(c: ModelConfig) -> NDArray[np.uint8]:
    """Room for the columns, or none where they would never pay. Not written to, so it takes no memory yet.

    On huge pages: columns are read from all over.
    """
    if c.activation != "relu2" or c.ternary_weights // 4 < SMALLEST_TERNARY or isa.chosen() == isa.NAIVE:
        return np.zeros(0, np.uint8)
    size = c.layers * _layer_bytes(c.hidden, c.feed_forward)
    free = available_bytes()
    return np.zeros(0, np.uint8) if free is not None and free < 3 * size else zeros_on_huge_pages(size)


def compile_builder(weights: arrays.Weights) -> None:
    """Compile what `build_columns` calls, so that it does not happen in the middle of a text."""
    _TURN.over(Frame(arrays.TurnFrame(weights.packed, weights.columns)), 6)


def build_columns(sizes: arrays.Sizes, weights: arrays.Weights, threads: int) -> None:
    """Fill weights.columns, layers split between threads. 0.25 s of one core for BitNet 2B-4T (docs/log.md#columns-down-meet-zeros)."""
    size, blocks = _layer_bytes(sizes.hidden, sizes.feed_forward), _blocks(sizes.hidden)
    transpose = _TURN.over(Frame(arrays.TurnFrame(weights.packed, weights.columns)), 6)
    width = arrays.packed_width(sizes.feed_forward)

    def turn(first: int, last: int) -> None:
        for layer in range(first, last):
            offset = int(weights.offsets[layer, arrays.DOWN])
            transpose(offset, width, sizes.hidden, layer * size, 0, blocks)

    split(turn, sizes.layers, threads)
    weights.columns_built[0] = 1
