"""Random ternary rows with a scale a group, as models have them, for the tests of kernels. Scripts of this folder import it by its name."""

import numpy as np
from bitnet_kernels import group_rows
from numpy.typing import NDArray


def matrix(rng: np.random.Generator, rows: int, cols: int, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes, one in a hundred 3, and scales log-uniform from 1e-5 to 0.08."""
    codes = rng.integers(0, 3, (rows, cols), np.uint8)
    codes[rng.random((rows, cols)) < 0.01] = 3
    return codes, np.exp(rng.uniform(np.log(1e-5), np.log(0.08), (rows, cols // group))).astype(np.float16)


def packed(codes: NDArray[np.uint8], scales: NDArray[np.float16], offset: int, tail: int = 61) -> NDArray[np.uint8]:
    """The matrix at byte `offset` of a larger array. What lies before and after is 0xFF: NaN as a scale, so a stray read shows."""
    (rows, cols), count = codes.shape, scales.shape[1]
    size = group_rows.matrix_bytes(rows, cols, cols // count)
    whole = np.full(offset + size + tail, 0xFF, np.uint8)
    group_rows.lay_out(group_rows.words_of(codes), scales, whole[offset : offset + size])
    return whole
