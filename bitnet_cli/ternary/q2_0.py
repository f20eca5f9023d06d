"""Q2_0, llama.cpp's 2-bit layout of small blocks (GGUF tensor type 42): 64 weights of a row in 18 bytes, 2.25 bits a weight.

First the block's scale in two bytes, float16, little-endian. Then 16 bytes: byte j holds weights 4j, 4j + 1, 4j + 2, 4j + 3 at bits 1-0,
3-2, 5-4, 7-6. A weight is (code - 1) * scale. Code 3, the weight 2, is a legal one, so a Q2_0 tensor need not be ternary.

Source: llama.cpp, ggml/src/ggml-common.h (block_q2_0, QK2_0 = 64) and ggml-quants.c (dequantize_row_q2_0). Blocks of 128: pq2_0.py.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # weights
BLOCK_BYTES = 18
SCALE_AT = 0  # byte of the scale in a block


def pack_rows(values: NDArray[np.int8], block: int = BLOCK) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1, 2}, cols a multiple of the block -> (rows * cols / 64 * 18,) uint8. Every block's scale is 1."""
    if values.shape[-1] % block:
        raise ValueError(f"Q2_0 needs rows of a multiple of {block} weights, not {values.shape[-1]}")
    codes = code_bytes(values).reshape(-1, block // 4)
    blocks = np.empty((len(codes), 2 + block // 4), np.uint8)
    blocks[:, :2] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    blocks[:, 2:] = codes
    return blocks.reshape(-1)


def code_bytes(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1, 2}, cols a multiple of 4 -> (rows, cols / 4) uint8: the bytes of a block's codes alone."""
    fours = (values + np.int8(1)).view("<u4")  # code i of four at bit 8i, to go to bit 2i
    codes: NDArray[np.uint8] = (fours | fours >> 6 | fours >> 12 | fours >> 18).astype(np.uint8)  # what lies above bit 7 is cut off
    return codes


def unpack_rows(raw: NDArray[np.uint8], cols: int, block: int = BLOCK) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8: the codes less 1, whatever the scales are; 2 where a code is 3."""
    fours = raw.reshape(-1, 2 + block // 4)[:, 2:].astype("<u4")  # field i at bit 2i, to go to bit 8i
    fours = (fours | fours << 6 | fours << 12 | fours << 18) & np.uint32(0x03030303)
    values: NDArray[np.int8] = fours.view(np.int8).reshape(-1, cols) - np.int8(1)
    return values
