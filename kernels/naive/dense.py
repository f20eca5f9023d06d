"""Twin of kernels/dense.py."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import HEAD_BF16, HEAD_BLOCKS, HEAD_F16, HEAD_F32, HEAD_Q4_0, HEAD_Q4_K, HEAD_Q8_0


def rows(data: NDArray[np.uint8], offset: int, kind: int, first: int, last: int, cols: int) -> NDArray[np.float32]:
    """Rows first <= r < last of the matrix at byte `offset`, as (last - first, cols) float32."""
    count = last - first
    if kind in (HEAD_F32, HEAD_F16):
        dtype = np.dtype("<f4" if kind == HEAD_F32 else "<f2")
        start = offset + first * cols * dtype.itemsize
        return data[start : start + count * cols * dtype.itemsize].view(dtype).reshape(count, cols).astype(np.float32)
    if kind == HEAD_BF16:
        bits = data[offset + first * cols * 2 : offset + last * cols * 2].view("<u2").astype("<u4")
        return (bits << np.uint32(16)).view(np.float32).reshape(count, cols)
    weights, size = HEAD_BLOCKS[kind]
    stride = cols // weights * size
    blocks = data[offset + first * stride : offset + last * stride].reshape(-1, size)
    values = {HEAD_Q8_0: _q8_0, HEAD_Q4_0: _q4_0, HEAD_Q4_K: _q4_k}.get(kind, _q6_k)(blocks)
    return values.reshape(count, cols)


def _f16(column: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(blocks, 2) bytes -> (blocks, 1) float32."""
    return np.ascontiguousarray(column).view("<f2").astype(np.float32)


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _f16(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
    return _f16(blocks[:, :2]) * (codes.astype(np.float32) - np.float32(8))


def _q6_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    fours = np.stack([low & 15, low >> 4], 2).reshape(-1, 2, 4, 32)  # weights 0-31, 32-63, 64-95, 96-127 of each half
    twos = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (fours | twos << 4).astype(np.float32).reshape(-1, 16, 16) - np.float32(32)
    scales = _f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    values: NDArray[np.float32] = codes * scales[:, :, None]
    return values


def _q4_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    d, e, packed = _f16(blocks[:, :2]), _f16(blocks[:, 2:4]), blocks[:, 4:16]
    first, least, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = d * np.concatenate([first & 63, both & 15 | first >> 6 << 4], 1).astype(np.float32)
    minima = e * np.concatenate([least & 63, both >> 4 | least >> 6 << 4], 1).astype(np.float32)
    pairs = blocks[:, 16:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], 2).astype(np.float32).reshape(-1, 8, 32)
    values: NDArray[np.float32] = codes * scales[:, :, None] - minima[:, :, None]
    return values


def head_matvec(
    data: NDArray[np.uint8], offset: int, kind: int, x: NDArray[np.float32], out: NDArray[np.float32], chunk: int = 4096
) -> None:
    """out[r] = sum_c W[r, c] * x[c] for every r. x: (cols,) float32; out: (rows,) float32, overwritten."""
    for first in range(0, len(out), chunk):
        last = min(first + chunk, len(out))
        out[first:last] = rows(data, offset, kind, first, last, len(x)) @ x
