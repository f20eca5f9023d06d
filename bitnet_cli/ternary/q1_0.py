"""Q1_0, llama.cpp's layout of binary weights (GGUF tensor type 41): 128 weights of a row in 18 bytes, 1.125 bits a weight.

First the block's scale in two bytes, float16, little-endian. Then 16 bytes: bit i of byte j, from the lowest on, is weight 8j + i: 1 for
+scale, 0 for -scale. There is no zero.

Source: llama.cpp, ggml/src/ggml-common.h (block_q1_0) and ggml-quants.c (dequantize_row_q1_0).
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 128  # weights
BLOCK_BYTES = 18
SCALE_AT = 0  # byte of the scale in a block


def pack_rows(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 1}, cols a multiple of 128 -> (rows * cols / 128 * 18,) uint8. Every block's scale is 1."""
    if values.shape[-1] % BLOCK:
        raise ValueError(f"Q1_0 needs rows of a multiple of {BLOCK} weights, not {values.shape[-1]}")
    bits = np.packbits(values > 0, bitorder="little").reshape(-1, BLOCK // 8)
    blocks = np.empty((len(bits), BLOCK_BYTES), np.uint8)
    blocks[:, :2] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    blocks[:, 2:] = bits
    return blocks.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8 in {-1, 1}, whatever the scales are."""
    bits = np.unpackbits(np.ascontiguousarray(raw.reshape(-1, BLOCK_BYTES)[:, 2:]), bitorder="little").view(np.int8)
    values: NDArray[np.int8] = (bits << 1).reshape(-1, cols) - np.int8(1)
    return values
