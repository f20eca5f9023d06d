"""TQ2_0, llama.cpp's 2-bit layout (GGUF tensor type 35): 256 weights of a row in 66 bytes, 2.0625 bits a weight.

Two halves of 128 weights in 32 bytes: byte j of a half holds its weights j, j + 32, j + 64, j + 96 at bits 1-0, 3-2, 5-4, 7-6, with codes
0, 1, 2 for -1, 0, +1. Code 3 would mean 2 and is not written. Then the block's scale in two bytes, float16, little-endian: a weight is
(code - 1) * scale. I2_S has the same order with the bits the other way round.

Source: llama.cpp, ggml/src/ggml-common.h (block_tq2_0) and ggml-quants.c (quantize_row_tq2_0_ref, dequantize_row_tq2_0).
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # weights
BLOCK_BYTES = 66
SCALE_AT = 64  # byte of the scale in a block


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 256 -> (rows * cols / 256 * 66,) uint8. Every block's scale is 1."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"TQ2_0 needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(-1, 2, 4, 32)
    halves = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    blocks = np.empty((len(codes), BLOCK_BYTES), np.uint8)
    blocks[:, :SCALE_AT] = halves.reshape(-1, 64)
    blocks[:, SCALE_AT:] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    return blocks.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8: the codes less 1, whatever the scales are; 2 where a code is 3."""
    halves = np.ascontiguousarray(raw.reshape(-1, BLOCK_BYTES)[:, :SCALE_AT]).reshape(-1, 2, 32)
    values = np.empty((len(halves), 2, 4, 32), np.int8)
    for field in range(4):
        values[:, :, field] = (halves >> np.uint8(2 * field) & np.uint8(3)).view(np.int8) - np.int8(1)
    return values.reshape(-1, cols)
