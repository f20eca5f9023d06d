"""What attention's kernels need from Python: a thread's Work over arrays of one's own, and queries in, results out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bitnet_kernels import attention
from bitnet_kernels.arrays import EVERYTHING
from bitnet_kernels.kv_cache import BLOCK, ONE_PAGE, UNIT, rounded
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CANARY = np.float32(-1234.5)


def new_work(rows: int, dim: int, place: Callable[[Any], Any] = np.copy) -> attention.Work:
    """For up to `rows` queries. Floats are NaN: what is used before it was written shows. place: puts an array where it shall lie."""
    fours, line = rounded(rows, 4), max(BLOCK, rounded(dim, UNIT))
    lines = [place(np.full(fours * line, np.nan, np.float32)) for _ in range(4)]
    panel, softmax = np.full(line * UNIT, np.nan, np.float32), np.full((6, rounded(fours, 16)), np.nan, np.float32)
    return attention.Work(*lines, place(panel), place(softmax), place(np.zeros(fours, np.int64)), place(np.zeros((2, fours), np.int64)))


def attend(queries: Floats, head: Any, lengths: Sequence[int], window: int = EVERYTHING, place: Callable[[Any], Any] = np.copy) -> Floats:
    """queries: (rows, dim), head: a cache of one head -> (rows, dim)."""
    rows, dim = queries.shape
    work, out = new_work(rows, dim, place), np.full(rows * dim + 1, CANARY)
    line = len(work.panel) // UNIT
    for row in range(rows):
        work.queries[row * line + dim : row * line + rounded(dim, 8)] = 0
        work.queries[row * line : row * line + dim] = queries[row] * (np.float32(1) / np.sqrt(np.float32(dim)))
    work.lengths[:rows] = lengths
    attention.attend(head, work, ONE_PAGE, -1, rows, dim, window, 0, -(-max(lengths) // BLOCK))
    for row in range(rows):
        attention.result(work, row, dim, out, row * dim)
    assert out[-1] == CANARY
    return out[:-1].reshape(rows, dim)


def attend_block_by_block(queries: Floats, head: Any, lengths: Sequence[int], window: int = EVERYTHING) -> Floats:
    """The same with every block by itself, as where several threads share a head: (rows, dim). All of them see the first block."""
    rows, dim = queries.shape
    work, out, blocks = new_work(rows, dim), np.zeros((rows, dim), np.float32), -(-max(lengths) // BLOCK)
    line = len(work.panel) // UNIT
    base = max(min(lengths) - window, 0) // BLOCK
    kept = np.full((blocks - base) * rows * (line + 16), np.nan, np.float32)
    for row in range(rows):
        work.queries[row * line + dim : row * line + rounded(dim, 8)] = 0
        work.queries[row * line : row * line + dim] = queries[row] * (np.float32(1) / np.sqrt(np.float32(dim)))
    work.lengths[:rows] = lengths
    for block in range(base, blocks):
        attention.attend(head, work, ONE_PAGE, -1, rows, dim, window, block, block + 1)
        attention.keep_block(work, rows, kept, (block - base) * rows * (line + 16))
    for row in range(rows):
        attention.join_blocks(work, row, rows, kept, blocks - base)
        attention.result(work, 0, dim, out[row], 0)
    return out
