"""Twin of kernels/ternary.py, from the definition: unpack the weights, multiply, add."""

import numpy as np
from numpy.typing import NDArray


def unpack(packed: NDArray[np.uint8], offset: int, rows: int, cols: int) -> NDArray[np.int8]:
    """I2_S rows that begin at byte `offset` of a flat array -> (rows, cols) int8 in {-1, 0, 1} (a code 3 would be 2)."""
    blocks = packed[offset : offset + rows * cols // 4].reshape(rows, cols // 128, 1, 32)
    fields = blocks >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    return fields.astype(np.int8).reshape(rows, cols) - np.int8(1)


def matmul(ternary: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """(rows, cols) in {-1, 0, 1} times (tokens, cols) int8 -> (tokens, rows) int32, exact.

    float64 products and sums of these integers are exact (below 2^53), and NumPy's are fast. Few rows at a time: for more it may wake
    threads, which takes 50 ms where other programs have the cores.
    """
    left, step = codes.astype(np.float64), 16
    parts = [left @ ternary[at : at + step].T.astype(np.float64) for at in range(0, len(ternary), step)]
    return np.concatenate(parts, -1).astype(np.int32)
