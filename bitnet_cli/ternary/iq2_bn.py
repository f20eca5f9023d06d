"""IQ2_BN, ik_llama.cpp's 2-bit layout (GGUF tensor type 135): a row is its scale, a little-endian float32, and blocks of 64 weights in 16
bytes, 2 bits a weight.

Byte j of a block holds its weights j, j + 16, j + 32, j + 48 at bits 1-0, 3-2, 5-4, 7-6, with codes 0, 1, 2 for -1, 0, +1. Code 3 is not
written. A weight is (code - 1) * scale. Of a row of zeros the quantiser writes the scale 0, and codes 2.

Source: ik_llama.cpp, ggml/src/ggml-common.h (block_iq2_bn) and ggml/src/iqk/iqk_quantize.cpp (quantize_one_row_2bn).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 64  # weights
BLOCK_BYTES = 16
SCALE = "<f4"  # of a row, before its blocks


def pack_rows(ternary: NDArray[np.int8], scale: ArrayLike = 1.0) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 64 -> (rows * (4 + cols / 4),) uint8. scale: of all rows, or (rows,)."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"IQ2_BN needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    rows = len(ternary)
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(rows, -1, 4, 16)
    packed = np.empty((rows, 4 + ternary.shape[1] // 4), np.uint8)
    packed[:, :4] = np.broadcast_to(np.asarray(scale, SCALE), rows).copy().view(np.uint8).reshape(rows, 4)
    packed[:, 4:] = (codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6).reshape(rows, -1)
    return packed.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8: the codes less 1, whatever the scales are; 2 where a code is 3."""
    return unpack_blocks(raw.reshape(-1, 4 + cols // 4)[:, 4:]).reshape(-1, cols)


def unpack_blocks(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Bytes of blocks, without scales -> (blocks, 64) int8."""
    blocks = raw.reshape(-1, BLOCK_BYTES)
    values = np.empty((len(blocks), 4, BLOCK_BYTES), np.int8)
    for field in range(4):
        values[:, field] = (blocks >> np.uint8(2 * field) & np.uint8(3)).view(np.int8) - np.int8(1)
    return values.reshape(-1, BLOCK)


def row_scales(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """(bytes,) uint8 of whole rows -> their scales, (rows,)."""
    return np.ascontiguousarray(raw.reshape(-1, 4 + cols // 4)[:, :4]).view(SCALE)[:, 0].astype(np.float32)
