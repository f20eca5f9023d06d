"""Float matrices -> q6_K and q4_K blocks, roughly: near the matrix, and whatever it is, blocks that mean something."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def _over(x: Floats, d: Floats) -> Floats:
    """x / d; 0 where d is 0."""
    return np.divide(x, d, out=np.zeros(np.broadcast_shapes(x.shape, d.shape), np.float32), where=d != 0)


def _half(d: Floats) -> tuple[Bytes, Floats]:
    """(blocks, 1) -> its float16 as two bytes, and what is left of it."""
    half = d.astype("<f2")
    return half.view(np.uint8), half.astype(np.float32)


def q6_k(matrix: Floats) -> Bytes:
    """(rows, cols) float32, cols a multiple of 256."""
    groups = matrix.reshape(-1, 16, 16)
    largest = np.abs(groups).max(2)
    bytes_of_d, d = _half(largest.max(1, keepdims=True) / np.float32(31 * 127))
    s = np.clip(np.rint(_over(largest / np.float32(31), d)), 0, 127).astype(np.int8)
    codes = (np.clip(np.rint(_over(groups, (d * s)[:, :, None])), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    high = codes[:, :, 0] >> 4 | codes[:, :, 1] >> 4 << 2 | codes[:, :, 2] >> 4 << 4 | codes[:, :, 3] >> 4 << 6
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), s.view(np.uint8), bytes_of_d], 1).reshape(-1)


def q4_k(matrix: Floats) -> Bytes:
    """(rows, cols) float32, cols a multiple of 256."""
    groups = matrix.reshape(-1, 8, 32)
    least, most = np.maximum(-groups.min(2), 0), groups.max(2)
    step = (most + least) / np.float32(15)
    (bytes_of_d, d), (bytes_of_e, e) = (_half(part.max(1, keepdims=True) / np.float32(63)) for part in (step, least))
    s, m = (np.clip(np.rint(_over(*pair)), 0, 63).astype(np.uint8) for pair in ((step, d), (least, e)))
    codes = np.clip(np.rint(_over(groups + (e * m)[:, :, None], (d * s)[:, :, None])), 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    scales = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    return np.concatenate([bytes_of_d, bytes_of_e, *scales, (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)], 1).reshape(-1)
