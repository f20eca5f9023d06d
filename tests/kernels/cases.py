"""What the kernel tests share: packed matrices, activations in kernel order, and the product in plain int64.

Nothing here computes by the code under test. Scripts that a test starts in a process of their own import this file by its name.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from bitnet_kernels import arrays, isa
from numpy.typing import NDArray

ROWS = (1, 2, 3, 5, 7, 63, 130)
COLS = (128, 256, 384, 640, 2560, 3200, 5504, 6912, 8704, 16384)
TOKENS = (1, 2, 3, 4, 5, 8, 9, 17, 70)
CANARY = -1234567


def ternary(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.int8]:
    """(rows, cols) int8, each of -1, 0, 1 equally often."""
    return rng.integers(-1, 2, (rows, cols), np.int8)


def activations(rng: np.random.Generator, tokens: int, cols: int) -> NDArray[np.int8]:
    """(tokens, cols) int8 over the whole range, -128 included."""
    return rng.integers(-128, 128, (tokens, cols), np.int8)


def packed(weights: NDArray[np.int8], offset: int, tail: int = 61) -> NDArray[np.uint8]:
    """I2_S bytes at byte `offset` of a larger array. What lies before and after is 0xFF: no weight has that code, so a stray read shows."""
    codes = (weights.astype(np.int16) + 1).astype(np.uint8).reshape(-1, 4, 32)
    rows = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    whole = np.full(offset + rows.size + tail, 0xFF, np.uint8)
    whole[offset : offset + rows.size] = rows.reshape(-1)
    return whole


def tile_bytes(tokens: int, cols: int) -> int:
    """How much of its tile ternary.matmul_scaled may use in the set that runs."""
    return arrays.staged_bytes(tokens, cols) if isa.chosen() == "amx" else arrays.TILE_BYTES


def padded_length(cols: int, width: int) -> int:
    """Length of a row in kernel order: whole groups of 4 registers of `width` bytes."""
    return -(-cols // (4 * width)) * 4 * width


def kernel_order(codes: NDArray[np.int8], width: int, more_rows: int = 0, more_cols: int = 0) -> NDArray[np.int8]:
    """(tokens, cols) in natural order -> kernel order for registers of `width` bytes, zero up to whole registers.

    A register of packed weights holds width / 32 blocks of 128; so the 32-value groups of as many blocks lie side by side. Rows and
    columns beyond those are 99: kernels may read such rows, but their products must go nowhere.
    """
    tokens, cols = codes.shape
    length, blocks = padded_length(cols, width), width // 32
    whole = np.zeros((tokens, length), np.int8)
    whole[:, :cols] = codes
    ordered = whole.reshape(tokens, -1, blocks, 4, 32).swapaxes(2, 3).reshape(tokens, length)
    out = np.full((tokens + more_rows, length + more_cols), 99, np.int8)
    out[:tokens, :length] = ordered
    return out


def natural_order(codes: NDArray[np.int8], width: int) -> NDArray[np.int8]:
    """Inverse of `kernel_order` for whole registers: (tokens, padded) -> (tokens, padded)."""
    tokens, length = codes.shape
    return codes.reshape(tokens, -1, 4, width // 32, 32).swapaxes(2, 3).reshape(tokens, length)


def product(weights: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """(tokens, rows): the definition, in int64."""
    return codes.astype(np.int64) @ weights.T.astype(np.int64)


def extremes(cols: int) -> Iterator[tuple[str, NDArray[np.int8], NDArray[np.int8]]]:
    """Name, weights (9, cols) and activations (5, cols) that reach the ends of every partial sum."""
    sign = np.where(np.arange(cols) % 2, -1, 1).astype(np.int8)
    for weight_name, row in (
        ("all +1", np.ones(cols, np.int8)),
        ("all -1", -np.ones(cols, np.int8)),
        ("all 0", 0 * sign),
        ("alternating", sign),
    ):
        for code_name, code in (("+127", 127), ("-128", -128), ("±127", None)):
            codes = np.full(cols, code, np.int8) if code is not None else 127 * sign
            yield f"{weight_name} times {code_name}", np.tile(row, (9, 1)), np.tile(codes, (5, 1))


def digest(*results: NDArray[np.generic]) -> str:
    """One short name for the exact bytes of some arrays."""
    total = hashlib.sha256()
    for result in results:
        total.update(np.ascontiguousarray(result).tobytes())
    return total.hexdigest()[:16]
