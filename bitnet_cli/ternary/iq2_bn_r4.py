"""IQ2_BN_R4, ik_llama.cpp's IQ2_BN with four rows interleaved (GGUF tensor type 335): four scales, little-endian float32, then for each
64 columns 64 bytes.

Byte 16 l + 4 k + i of a block, bits 2 m and 2 m + 1: row k of the four, weight 16 l + 4 m + i, with codes as in iq2_bn.py. The number of
rows is a multiple of four.

Source: ik_llama.cpp, ggml/src/iqk/iqk_quantize.cpp (repack_iq2_bn).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 64  # weights
BLOCK_BYTES = 16  # of one of the four rows
SCALE = "<f4"
ROWS = 4


def pack_rows(ternary: NDArray[np.int8], scale: ArrayLike = 1.0) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, rows a multiple of 4, cols of 64 -> (rows * (4 + cols / 4),) uint8. scale: one, or (rows,)."""
    rows, cols = ternary.shape
    if cols % BLOCK or rows % ROWS:
        raise ValueError(f"IQ2_BN_R4 needs a multiple of {ROWS} rows of a multiple of {BLOCK} weights, not {rows} of {cols}")
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(-1, ROWS, cols // BLOCK, 4, 4, 4)  # fours, k, block, l, m, i
    packed = np.empty((rows // ROWS, ROWS * (4 + cols // 4)), np.uint8)
    packed[:, :16] = np.broadcast_to(np.asarray(scale, SCALE), rows).copy().view(np.uint8).reshape(-1, 16)
    fields = codes[..., 0, :] | codes[..., 1, :] << 2 | codes[..., 2, :] << 4 | codes[..., 3, :] << 6  # fours, k, block, l, i
    packed[:, 16:] = fields.transpose(0, 2, 3, 1, 4).reshape(rows // ROWS, -1)
    return packed.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole fours of rows -> (rows, cols) int8: the codes less 1, whatever the scales are; 2 where a code is 3."""
    fours = np.ascontiguousarray(raw.reshape(-1, ROWS * (4 + cols // 4))[:, 16:])
    fields = fours.view("<u4").reshape(len(fours), cols // BLOCK, 4, ROWS).transpose(0, 3, 1, 2)  # fours, k, block, l: bytes of all i
    values = np.empty((*fields.shape, 4), "<u4")
    for m in range(4):
        values[..., m] = fields >> np.uint32(2 * m) & np.uint32(0x03030303)
    codes: NDArray[np.int8] = values.view(np.int8).reshape(-1, cols)
    codes -= np.int8(1)
    return codes


def row_scales(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """(bytes,) uint8 of whole fours of rows -> the scales of the rows, (rows,)."""
    fours = raw.reshape(-1, ROWS * (4 + cols // 4))[:, :16]
    return np.ascontiguousarray(fours).view(SCALE).reshape(-1).astype(np.float32)
