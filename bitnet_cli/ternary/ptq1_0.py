"""PTQ1_0, PrismML's base-3 layout (GGUF tensor type 143 of its fork of llama.cpp): 128 weights of a row in 28 bytes, 1.75 bits a weight.

    bytes 0 to 15    byte m holds weights m, m + 16, m + 32, m + 48, m + 64 (how: trits.py)
    bytes 16 to 23   byte m holds weights 80 + m, 88 + m, 96 + m, 104 + m, 112 + m
    bytes 24, 25     byte m holds weights 120 + m, 122 + m, 124 + m, 126 + m; the fifth code is 0
    bytes 26, 27     the block's scale, float16, little-endian: a weight is (code - 1) * scale

Source: PrismML's fork of llama.cpp, ggml/src/ggml-common.h and ggml-quants.c.
"""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.ternary import trits
from bitnet_cli.ternary.trits import Part

BLOCK = 128  # weights
BLOCK_BYTES = 28
SCALE_AT = 26  # byte of the scale in a block
PARTS = (Part(0, 16, 0, 5), Part(16, 8, 80, 5), Part(24, 2, 120, 4))


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 128 -> (rows * cols / 128 * 28,) uint8. Every block's scale is 1."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"PTQ1_0 needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    blocks = trits.pack(ternary.reshape(-1, BLOCK), PARTS, BLOCK_BYTES)
    blocks[:, SCALE_AT:] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    return blocks.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8 in {-1, 0, 1}: the codes less 1, whatever the scales are. Every byte decodes."""
    return trits.unpack(raw.reshape(-1, BLOCK_BYTES), PARTS, BLOCK).reshape(-1, cols)


def has_unwritten_bytes(raw: NDArray[np.uint8]) -> bool:
    """Whether a byte of the codes is one that no packer writes: a sign of damage."""
    return trits.has_unwritten_bytes(raw.reshape(-1, BLOCK_BYTES), PARTS)
