"""Hugging Face's packed ternary weights: four row blocks in one byte.

Byte (r, c) of the (rows / 4, cols) array holds rows r, r + R, r + 2R, r + 3R at bits 0-1, 2-3, 4-5, 6-7, with R = rows / 4 and
codes 0, 1, 2 for -1, 0, +1 (transformers, integrations/bitnet.py, `pack_weights`). Code 3 is unused.
"""

import numpy as np
from numpy.typing import NDArray


def pack(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, rows a multiple of 4 -> (rows / 4, cols) uint8."""
    blocks = (ternary + 1).astype(np.uint8).reshape(4, -1, ternary.shape[1])
    packed: NDArray[np.uint8] = blocks[0] | blocks[1] << 2 | blocks[2] << 4 | blocks[3] << 6
    return packed


def has_code_3(packed: NDArray[np.uint8]) -> bool:
    """Whether any 2-bit code of the packed bytes is the unused 3."""
    return bool(np.any(packed & packed >> 1 & 0x55))


def unpack_block(packed: NDArray[np.uint8], block: int) -> NDArray[np.int8]:
    """(n, cols) uint8 -> (n, cols) int8: the rows that row block `block` (0 to 3) holds in these byte rows. Code 3 is not looked for."""
    return (packed >> 2 * block & 3).astype(np.int8) - np.int8(1)


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """(rows / 4, cols) uint8 -> (rows, cols) int8 in {-1, 0, 1}. Raises ValueError where a code is 3."""
    if has_code_3(packed):
        raise ValueError("a 2-bit code is 3; only 0, 1 and 2 mean a ternary value")
    return np.concatenate([unpack_block(packed, block) for block in range(4)])
