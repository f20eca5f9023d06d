"""I2_S, bitnet.cpp's 2-bit layout (GGUF tensor type 36), in the 128/32 order of Microsoft's published files.

The tensor is one row-major stream. 128 weights in a row make 32 bytes: byte p holds weights p, p + 32, p + 64, p + 96 at bits
7-6, 5-4, 3-2, 1-0, with codes 0, 1, 2 for -1, 0, +1. After the n / 4 bytes of weights come 32 bytes whose first four are the scale,
a little-endian float32; the rest is zero (microsoft/BitNet, src/ggml-bitnet-mad.cpp and utils/convert-hf-to-gguf-bitnet.py).

bitnet.cpp built for ARM (since November 2025) packs 64 weights into 16 bytes instead: byte p holds weights p, p + 16, p + 32, p + 48. The
file does not say so. Read in the wrong order, groups of 16 columns change places; see i2_s_order.py.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 128  # weights
TAIL = 32  # bytes after the weights; the scale comes first


def nbytes(rows: int, cols: int) -> int:
    """Size of a packed tensor in bytes."""
    return rows * cols // 4 + TAIL


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 128 -> (rows * cols / 4,) uint8: the weights of some rows, without the tail."""
    if ternary.shape[-1] % BLOCK:
        raise ValueError(f"I2_S needs rows of a multiple of {BLOCK} weights, not {ternary.shape[-1]}")
    codes = (ternary + np.int8(1)).view(np.uint8).reshape(-1, 4, 32)
    weights = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return weights.reshape(-1).view(np.uint8)


def unpack_rows(weights: NDArray[np.uint8], cols: int, arm: bool = False) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows, without the tail -> (rows, cols) int8: the codes less 1, so 2 where a code is 3.

    cols: a multiple of 128; arm: the bytes are in the 64/16 order.
    """
    blocks = weights.reshape(-1, 16 if arm else 32)
    values = np.empty((len(blocks), 4, blocks.shape[1]), np.int8)
    for field in range(4):
        values[:, field] = (blocks >> np.uint8(6 - 2 * field) & np.uint8(3)).view(np.int8) - np.int8(1)
    return values.reshape(-1, cols)


def tail(scale: float) -> NDArray[np.uint8]:
    """The 32 bytes after the weights: the scale and zeros."""
    return np.frombuffer(np.array(scale, "<f4").tobytes().ljust(TAIL, b"\0"), np.uint8)


def pack(ternary: NDArray[np.int8], scale: float) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 128 -> (rows * cols / 4 + 32,) uint8."""
    return np.concatenate([pack_rows(ternary), tail(scale)])


def unpack(raw: NDArray[np.uint8], rows: int, cols: int) -> tuple[NDArray[np.int8], np.float32]:
    """Inverse of `pack`: ternary values (rows, cols) int8 and the scale. Raises ValueError on a wrong size or a code 3."""
    if raw.size != nbytes(rows, cols) or cols % BLOCK:
        raise ValueError(f"{raw.size} bytes are not an I2_S tensor of {rows} x {cols}")
    values = unpack_rows(raw[:-TAIL], cols)
    if values.max(initial=0) > 1:
        raise ValueError("a 2-bit code is 3; only 0, 1 and 2 mean a ternary value")
    return values, np.frombuffer(raw[-TAIL : 4 - TAIL].tobytes(), "<f4")[0]
