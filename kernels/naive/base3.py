"""Twin of kernels/base3.py, from the definition: digits one by one, then the order of the weights."""

import numpy as np
from numpy.typing import NDArray


def unpack(rows: NDArray[np.uint8], offset: int, count: int, cols: int, width: int) -> NDArray[np.int8]:
    """Base-3 rows that begin at byte `offset` of a flat array -> (count, cols) int8 in {-1, 0, 1}. width: bytes of a register."""
    groups = -(-cols // (4 * width))  # of four activation registers
    registers = -(-4 * groups // 5)
    v = rows[offset : offset + count * registers * width].reshape(count, registers, width).astype(np.int64)
    codes = np.empty((count, registers, 5, width), np.int8)
    for k in range(5):
        codes[:, :, k] = v * 3 // 256
        v = v * 3 % 256
    ordered = codes.reshape(count, -1)[:, : groups * 4 * width]
    natural = ordered.reshape(count, groups, 4, width // 32, 32).swapaxes(2, 3).reshape(count, -1)
    return natural[:, :cols] - np.int8(1)
