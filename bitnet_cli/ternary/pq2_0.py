"""PQ2_0, PrismML's 2-bit layout (GGUF tensor type 142 of its fork of llama.cpp): 128 weights of a row in 34 bytes, 2.125 bits a weight.

As Q2_0 (q2_0.py), with 32 bytes of codes after the scale: byte j holds weights 4j to 4j + 3, from bit 0 on; a weight is (code - 1) * scale,
and code 3, the weight 2, is a legal one. PrismML's files of April to July 2026 have this layout under the number of Q2_0, 42
(gguf_file/dialects.py tells them apart).
"""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.ternary import q2_0

BLOCK = 128  # weights
BLOCK_BYTES = 34
SCALE_AT = 0  # byte of the scale in a block


def pack_rows(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1, 2}, cols a multiple of 128 -> (rows * cols / 128 * 34,) uint8. Every block's scale is 1."""
    return q2_0.pack_rows(values, BLOCK)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8: the codes less 1, whatever the scales are; 2 where a code is 3."""
    return q2_0.unpack_rows(raw, cols, BLOCK)
