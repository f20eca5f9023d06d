"""The head's planes: what they cost, when they pay, and how they are made at load.

With them a token reads 4 to 8 bits of a head weight where the file has 16 (kernels/head_search.py), for a sampler that looks at the
largest logits only. They take half the memory of a float16 head, 1.2 times that of a q6_K one; its own pages are given back as they are
cut, and later only rows are read that matter. Rows of tokens that are never chosen have no planes, so a search does not meet them.
"""

import numpy as np
from bitnet_kernels import arrays, isa
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

from bitnet_cli.machine.memory import give_back
from bitnet_cli.machine.threads import split

# Kinds with more bits than the planes that are read, or which take longer to be taken apart than to be read: of random weights, which is
# the worst case, a q6_K head takes 1.7 times as long without planes, one of q4_K 1.3 times; q4_0 gains nothing (docs/log.md).
KINDS = (arrays.HEAD_F32, arrays.HEAD_F16, arrays.HEAD_BF16, arrays.HEAD_Q8_0, arrays.HEAD_Q6_K, arrays.HEAD_Q4_K)
_CUT = Entry("head_planes", "build_rows")
SMALLEST_HEAD = 8 << 20  # weights
CHUNK_ROWS = 4096  # a thread's rows between two times that pages are given back: 20 MB of float16 at hidden 2,560


def planes_for(kind: int | None, vocab: int, hidden: int, silent: NDArray[np.int64] = arrays.NO_ROWS) -> arrays.Planes:
    """Room for the planes of a (vocab, hidden) head without its `silent` rows, or none where they would not pay."""
    pays = kind in KINDS and vocab * hidden >= SMALLEST_HEAD and isa.chosen() != isa.NAIVE
    return arrays.new_planes(vocab, hidden, silent=silent) if pays else arrays.new_planes(0, hidden)


def compile_builder() -> None:
    """Compile what `build_planes` calls, so that it does not happen in the middle of a text."""
    nothing = np.zeros(0, np.uint8)
    _CUT.over(Frame(arrays.CutFrame(nothing, arrays.new_planes(0, 128), np.zeros(0, np.float32), nothing)), 5)


def build_planes(sizes: arrays.Sizes, weights: arrays.Weights, threads: int) -> None:
    """Fill weights.planes from the head, rows split between threads. 0.2 s for 128,256 x 2,560 with two threads (docs/log.md)."""
    offset, kind, hidden, ids = int(weights.head_offset[0]), int(sizes.head_kind), sizes.hidden, weights.planes.ids
    per_block, size = arrays.HEAD_BLOCKS[sizes.head_kind]
    stride = hidden // per_block * size

    def cut(first: int, last: int) -> None:
        values, codes = np.zeros(hidden, np.float32), np.zeros(arrays.padded(hidden), np.uint8)
        build_rows = _CUT.over(Frame(arrays.CutFrame(weights.head, weights.planes, values, codes)), 5)
        for begin in range(first, last, CHUNK_ROWS):
            end = min(begin + CHUNK_ROWS, last)
            build_rows(offset, kind, hidden, begin, end)
            give_back(weights.head, offset + int(ids[begin]) * stride, offset + (int(ids[end - 1]) + 1) * stride)

    split(cut, len(ids), threads)


def bytes_read(sizes: arrays.Sizes, rows: int, counts: NDArray[np.int64]) -> float:
    """Mean bytes of the head that a search read. rows: of the planes; counts: (3,) rows read, as Scratch.head_counts; 0.0 if none was."""
    if not counts[0]:
        return 0.0
    searches = counts[0] / rows
    per_block, size = arrays.HEAD_BLOCKS[sizes.head_kind]
    length = arrays.padded(sizes.hidden)
    row = np.array([length * 3 / 4 + 16, length / 4, sizes.hidden / per_block * size])
    return float((counts * row).sum() / searches)
