"""Five ternary codes a byte, as TQ1_0 (tq1_0.py) and PTQ1_0 (ptq1_0.py) have them.

A byte holds codes c0 .. c4 of {0, 1, 2}, for -1, 0, +1, as the fraction (81 c0 + 27 c1 + 9 c2 + 3 c3 + c4) / 243 of 256, rounded up.
Multiplying that fraction by 3 moves the first code in front of the point, so code n is the byte times 3^n, modulo 256, times 3, over 256:
no division. 243 of the 256 bytes are written by a packer; where a byte has four codes, the fifth is 0.

Source: llama.cpp, ggml/src/ggml-quants.c (quantize_row_tq1_0_ref, dequantize_row_tq1_0).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


class Part(NamedTuple):
    """Bytes of a block: byte m, counted from `byte` on, holds the weights `weight` + m, + `size`, ... `codes` of them."""

    byte: int
    size: int  # bytes
    weight: int
    codes: int


def pack(ternary: NDArray[np.int8], parts: tuple[Part, ...], size: int) -> NDArray[np.uint8]:
    """(blocks, weights) int8 in {-1, 0, 1} -> (blocks, size) uint8, of which what belongs to no part is not set."""
    codes = (ternary + np.int8(1)).view(np.uint8)
    blocks = np.empty((len(codes), size), np.uint8)
    for byte, count, weight, digits in parts:
        number = np.zeros((len(codes), count), np.uint16)
        for n in range(digits):
            number += codes[:, weight + n * count : weight + (n + 1) * count] * _POWERS[4 - n]
        blocks[:, byte : byte + count] = (number * np.uint16(256) + np.uint16(242)) // np.uint16(243)
    return blocks


def unpack(blocks: NDArray[np.uint8], parts: tuple[Part, ...], weights: int) -> NDArray[np.int8]:
    """(blocks, bytes) uint8 -> (blocks, weights) int8 in {-1, 0, 1}. Every byte decodes."""
    values = np.empty((len(blocks), weights), np.int8)
    for byte, count, weight, digits in parts:
        part = np.ascontiguousarray(blocks[:, byte : byte + count])
        for n in range(digits):
            fraction = part * _POWERS[n]
            # times 3, over 256: 0 up to 85, 1 up to 170, else 2
            code = (fraction > 85).view(np.int8) + (fraction > 170).view(np.int8)
            values[:, weight + n * count : weight + (n + 1) * count] = code - np.int8(1)
    return values


def has_unwritten_bytes(blocks: NDArray[np.uint8], parts: tuple[Part, ...]) -> bool:
    """Whether a byte of the codes is one that no packer writes: a sign of damage."""
    written = np.unique((np.arange(243) * 256 + 242) // 243)
    for byte, count, _, digits in parts:
        unknown = np.ones(256, bool)
        unknown[written[:: 3 ** (5 - digits)]] = False
        if unknown[blocks[:, byte : byte + count]].any():
            return True
    return False
