"""Twin of kernels/dense.py."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import HEAD_F16, HEAD_F32


def rows(data: NDArray[np.uint8], offset: int, kind: int, first: int, last: int, cols: int) -> NDArray[np.float32]:
    """Rows first <= r < last of the matrix at byte `offset`, as (last - first, cols) float32."""
    count = last - first
    if kind in (HEAD_F32, HEAD_F16):
        dtype = np.dtype("<f4" if kind == HEAD_F32 else "<f2")
        start = offset + first * cols * dtype.itemsize
        return data[start : start + count * cols * dtype.itemsize].view(dtype).reshape(count, cols).astype(np.float32)
    stride = cols // 32 * 34
    blocks = data[offset + first * stride : offset + last * stride].reshape(-1, 34)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8).astype(np.float32) * scales).reshape(count, cols)


def head_matvec(
    data: NDArray[np.uint8], offset: int, kind: int, x: NDArray[np.float32], out: NDArray[np.float32], chunk: int = 4096
) -> None:
    """out[r] = sum_c W[r, c] * x[c] for every r. x: (cols,) float32; out: (rows,) float32, overwritten."""
    for first in range(0, len(out), chunk):
        last = min(first + chunk, len(out))
        out[first:last] = rows(data, offset, kind, first, last, len(x)) @ x
