"""IQ1_BN, ik_llama.cpp's base-3 layout (GGUF tensor type 134): a row is its scale, a little-endian float16, and blocks of 64 weights in 13
bytes, 1.625 bits a weight.

    bytes 0 to 11   byte 3 i + k holds weights 16 i + 5 k to 16 i + 5 k + 4
    byte 12         weights 15, 31, 47, 63; the fifth code is 0

A byte holds five codes c0 .. c4 of {0, 1, 2}, for -1, 0, +1, as the fraction (c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4) / 243 of 256, rounded up:
TQ1_0's digits the other way round. Code j is the byte times 3^(4 - j), modulo 256, times 3, over 256. 243 of the 256 bytes are written by a
packer. A weight is (code - 1) * scale. Of a row of zeros the quantiser writes the scale 0, and codes 2.

Source: ik_llama.cpp, ggml/src/ggml-common.h (block_iq1_bn) and ggml/src/iqk/iqk_quantize.cpp (quantize_one_row_1bn, dequantize_row_iq1_bn,
whose (v + v / 2) >> 7 is the same as 3 v >> 8 for all 256 bytes).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 64  # weights
BLOCK_BYTES = 13
SCALE = "<f2"  # of a row, before its blocks
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
# Byte -> its five codes, a byte each, the first one lowest: a look-up takes three quarters of the time of arithmetic on each code.
_FIVE = (np.arange(256)[:, None] * 3 ** np.arange(5)[::-1] % 256 * 3 // 256 << 8 * np.arange(5)).sum(1).astype("<u8")
WRITTEN = (np.arange(243) * 256 + 242) // 243  # the byte of each number; the first 81 have 0 as their fifth code


def pack_rows(ternary: NDArray[np.int8], scale: ArrayLike = 1.0) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 64 -> (rows * (2 + cols / 64 * 13),) uint8. scale: one, or (rows,)."""
    rows, cols = ternary.shape
    if cols % BLOCK:
        raise ValueError(f"IQ1_BN needs rows of a multiple of {BLOCK} weights, not {cols}")
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(rows, -1, 4, 16)
    blocks = np.empty((rows, cols // BLOCK, BLOCK_BYTES), np.uint8)
    blocks[..., :12] = WRITTEN[codes[..., :15].reshape(rows, -1, 12, 5) @ _POWERS]  # at most 242: fits a byte
    blocks[..., 12] = WRITTEN[codes[..., 15] @ _POWERS[:4]]
    packed = np.empty((rows, 2 + blocks[0].size), np.uint8)
    packed[:, :2] = np.broadcast_to(np.asarray(scale, SCALE), rows).copy().view(np.uint8).reshape(rows, 2)
    packed[:, 2:] = blocks.reshape(rows, -1)
    return packed.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8 in {-1, 0, 1}: the codes less 1, whatever the scales are. Every byte decodes."""
    blocks = _blocks(raw, cols)
    fives = _FIVE[np.ascontiguousarray(blocks[:, :12])].reshape(-1, 4, 3)
    last = _FIVE[blocks[:, 12]]
    values = np.empty((len(blocks), 4, 2), "<u8")  # of 16 codes, a byte each
    values[..., 0] = fives[..., 0] | fives[..., 1] << np.uint64(40)
    values[..., 1] = fives[..., 1] >> np.uint64(24) | fives[..., 2] << np.uint64(16)
    for i in range(4):
        values[:, i, 1] |= last >> np.uint64(8 * i) << np.uint64(56)
    codes: NDArray[np.int8] = values.view(np.int8).reshape(-1, cols)
    codes -= np.int8(1)
    return codes


def row_scales(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """(bytes,) uint8 of whole rows -> their scales, (rows,)."""
    return np.ascontiguousarray(_rows(raw, cols)[:, :2]).view(SCALE)[:, 0].astype(np.float32)


def has_unwritten_bytes(raw: NDArray[np.uint8], cols: int) -> bool:
    """Whether a byte of the codes is one that no packer writes: a sign of damage."""
    unknown = np.ones((2, 256), bool)
    unknown[0, WRITTEN] = False
    unknown[1, WRITTEN[:81]] = False
    blocks = _blocks(raw, cols)
    return bool(unknown[0][blocks[:, :12]].any() or unknown[1][blocks[:, 12]].any())


def _rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.uint8]:
    return raw.reshape(-1, 2 + cols // BLOCK * BLOCK_BYTES)


def _blocks(raw: NDArray[np.uint8], cols: int) -> NDArray[np.uint8]:
    return _rows(raw, cols)[:, 2:].reshape(-1, BLOCK_BYTES)
