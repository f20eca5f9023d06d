"""TQ1_0, llama.cpp's base-3 layout (GGUF tensor type 34): 256 weights of a row in 54 bytes, 1.6875 bits a weight.

A byte holds five codes c0 .. c4 of {0, 1, 2}, for -1, 0, +1, as the fraction (81 c0 + 27 c1 + 9 c2 + 3 c3 + c4) / 243 of 256, rounded up.
Multiplying that fraction by 3 moves the first code in front of the point, so code n is the byte times 3^n, modulo 256, times 3, over 256:
no division. 243 of the 256 bytes are written by a packer.

    bytes 0 to 31    byte m holds weights m, m + 32, m + 64, m + 96, m + 128
    bytes 32 to 47   byte m holds weights 160 + m, 176 + m, 192 + m, 208 + m, 224 + m
    bytes 48 to 51   byte m holds weights 240 + m, 244 + m, 248 + m, 252 + m; the fifth code is 0
    bytes 52, 53     the block's scale, float16, little-endian: a weight is (code - 1) * scale

Source: llama.cpp, ggml/src/ggml-common.h (block_tq1_0) and ggml-quants.c (quantize_row_tq1_0_ref, dequantize_row_tq1_0).
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # weights
BLOCK_BYTES = 54
SCALE_AT = 52  # byte of the scale in a block
_PARTS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))  # first byte, bytes, first weight, codes in a byte
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 256 -> (rows * cols / 256 * 54,) uint8. Every block's scale is 1."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"TQ1_0 needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(-1, BLOCK)
    blocks = np.empty((len(codes), BLOCK_BYTES), np.uint8)
    for byte, count, weight, digits in _PARTS:
        number = np.zeros((len(codes), count), np.uint16)
        for n in range(digits):
            number += codes[:, weight + n * count : weight + (n + 1) * count] * _POWERS[4 - n]
        blocks[:, byte : byte + count] = (number * np.uint16(256) + np.uint16(242)) // np.uint16(243)
    blocks[:, SCALE_AT:] = np.frombuffer(np.array(1, "<f2").tobytes(), np.uint8)
    return blocks.reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8 in {-1, 0, 1}: the codes less 1, whatever the scales are. Every byte decodes."""
    blocks = raw.reshape(-1, BLOCK_BYTES)
    values = np.empty((len(blocks), BLOCK), np.int8)
    for byte, count, weight, digits in _PARTS:
        part = np.ascontiguousarray(blocks[:, byte : byte + count])
        for n in range(digits):
            fraction = part * _POWERS[n]
            # times 3, over 256: 0 up to 85, 1 up to 170, else 2
            code = (fraction > 85).view(np.int8) + (fraction > 170).view(np.int8)
            values[:, weight + n * count : weight + (n + 1) * count] = code - np.int8(1)
    return values.reshape(-1, cols)


def has_unwritten_bytes(raw: NDArray[np.uint8]) -> bool:
    """Whether a byte of the codes is one that no packer writes: a sign of damage."""
    five = np.unique((np.arange(243) * 256 + 242) // 243)
    blocks = raw.reshape(-1, BLOCK_BYTES)
    unknown = np.ones((2, 256), bool)
    unknown[0, five] = False
    unknown[1, five[::3]] = False  # the fifth code is 0
    return bool(unknown[0][blocks[:, :48]].any() or unknown[1][blocks[:, 48:SCALE_AT]].any())
