"""TQ1_0, llama.cpp's base-3 layout (GGUF tensor type 34): 256 weights of a row in 54 bytes, 1.6875 bits a weight.

    bytes 0 to 31    byte m holds weights m, m + 32, m + 64, m + 96, m + 128 (how: trits.py)
    bytes 32 to 47   byte m holds weights 160 + m, 176 + m, 192 + m, 208 + m, 224 + m
    bytes 48 to 51   byte m holds weights 240 + m, 244 + m, 248 + m, 252 + m; the fifth code is 0
    bytes 52, 53     the block's scale, float16, little-endian: a weight is (code - 1) * scale

Source: llama.cpp, ggml/src/ggml-common.h (block_tq1_0) and ggml-quants.c (quantize_row_tq1_0_ref, dequantize_row_tq1_0).
"""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.ternary import trits
from bitnet_cli.ternary.trits import Part

BLOCK = 256  # weights
BLOCK_BYTES = 54
SCALE_AT = 52  # byte of the scale in a block
PARTS = (Part(0, 32, 0, 5), Part(32, 16, 160, 5), Part(48, 4, 240, 4))


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 256 -> (rows * cols / 256 * 54,) uint8. Every block's scale is 1."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"TQ1_0 needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    blocks = trits.pack(ternary.reshape(-1, BLOCK), PARTS, BLOCK_BYTES)
    blocks[:, SCALE_AT:] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    return blocks.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8 in {-1, 0, 1}: the codes less 1, whatever the scales are. Every byte decodes."""
    return trits.unpack(raw.reshape(-1, BLOCK_BYTES), PARTS, BLOCK).reshape(-1, cols)


def has_unwritten_bytes(raw: NDArray[np.uint8]) -> bool:
    """Whether a byte of the codes is one that no packer writes: a sign of damage."""
    return trits.has_unwritten_bytes(raw.reshape(-1, BLOCK_BYTES), PARTS)
