"""Float tensors -> bytes of a GGUF tensor type, a chunk of rows at a time: F32, F16, BF16, and Q8_0, Q6_K, Q4_0 for the embedding and head.

Q8_0: 32 weights in 34 bytes, a float16 scale d = max|x| / 127 and 32 int8 values round(x / d), halves away from zero (ggml-quants.c,
`quantize_row_q8_0_ref`).
Q4_0: 32 weights in 18 bytes, d = m / -8 for the value m of largest size, codes floor(x / d + 8.5) up to 15 (`quantize_row_q4_0_ref`).
Q6_K: 256 weights in 210 bytes, codes -32..31 with a scale a 16 weights, which is 8 bits times a float16 d. The scale maps the value of
largest size to -32; ggml also searches around it for the smallest squared error, which this does not.
Every type refuses NaN and Inf, and values that would become Inf.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import BLOCKS, TensorType, nbytes

Q8_0_BLOCK = 32


class Source(Protocol):
    """A tensor that is read as float32, a few rows at a time: stored.StoredTensor, gguf_source.QuantisedTensor."""

    @property
    def path(self) -> Path:
        """Of its file."""

    @property
    def name(self) -> str:
        """In that file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row length last."""

    def float32_chunks(self) -> Iterator[NDArray[np.float32]]:
        """All rows, in order."""


def require_blocks(tensor: Source, kind: TensorType) -> None:
    """UnsupportedError where the rows of `tensor` are not whole blocks of `kind`."""
    block = BLOCKS[kind][0]
    if tensor.shape[-1] % block:
        raise UnsupportedError(f"{tensor.path}: {tensor.name}: {kind.name} needs rows of a multiple of {block}, not {tensor.shape[-1]}")


def encode(tensor: Source, kind: TensorType) -> NDArray[np.uint8]:
    """All bytes of `tensor` as `kind`: nbytes(kind, tensor.shape) of them."""
    convert = _ENCODERS[kind]
    result = np.empty(nbytes(kind, tensor.shape), np.uint8)
    done = 0
    for chunk in tensor.float32_chunks():
        if not np.isfinite(chunk).all():
            raise BadFileError(tensor.path, tensor.name, "holds NaN or Inf")
        with np.errstate(over="ignore"):
            encoded = convert(chunk)
        if encoded is None:
            largest = float(np.abs(chunk).max())
            raise UnsupportedError(f"{tensor.path}: {tensor.name}: {largest:g} is beyond the range of {kind.name}")
        result[done : done + encoded.nbytes] = encoded.reshape(-1).view(np.uint8)
        done += encoded.nbytes
    return result


def _f32(chunk: NDArray[np.float32]) -> NDArray[np.float32]:
    return chunk


def _f16(chunk: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """Round to nearest, halves to even."""
    half = chunk.astype("<f2")
    return None if np.isinf(half).any() else half


def _bf16(chunk: NDArray[np.float32]) -> NDArray[np.uint16] | None:
    """Round to nearest, halves to even; numbers are finite."""
    bits = chunk.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    return None if ((rounded & 0x7F80) == 0x7F80).any() else rounded.astype("<u2")


def _q8_0(chunk: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    blocks = chunk.reshape(-1, Q8_0_BLOCK)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    stored = d.astype("<f2")
    if np.isinf(stored).any():
        return None
    # Below the smallest normal number 1 / d can be Inf. Such a d is stored as 0, so the values do not matter: 0, as for d = 0.
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d >= np.finfo(np.float32).tiny)
    scaled = blocks * inverse
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += size - whole >= 0.5
    values = np.copysign(whole, scaled).astype(np.int8)
    return np.concatenate([stored.view(np.uint8), values.view(np.uint8)], axis=1)


def _largest(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """(blocks, n) -> (blocks, 1): the value of largest size of each, with its sign."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)


def _inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / d; 0 where d is 0 or too small for that to be finite."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=np.abs(d) >= np.finfo(np.float32).tiny)


def _q4_0(chunk: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    blocks = chunk.reshape(-1, 32)
    d = _largest(blocks) / np.float32(-8)
    stored = d.astype("<f2")
    if np.isinf(stored).any():
        return None
    codes = np.clip(np.trunc(blocks * _inverse(d) + np.float32(8.5)), 0, 15).astype(np.uint8)
    return np.concatenate([stored.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def _q6_k(chunk: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    groups = chunk.reshape(-1, 16)
    scales = (_largest(groups) / np.float32(-32)).reshape(-1, 16)
    d = _largest(scales) / np.float32(-128)
    stored = d.astype("<f2")
    if np.isinf(stored).any():
        return None
    small = np.clip(np.rint(scales * _inverse(stored.astype(np.float32))), -128, 127).astype(np.int8)
    steps = (stored.astype(np.float32) * small).reshape(-1, 1)
    codes = (np.clip(np.rint(groups * _inverse(steps)), -32, 31).astype(np.int8) + 32).view(np.uint8).reshape(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    high = codes >> 4
    twos = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (low.reshape(-1, 128), twos.reshape(-1, 64), small.view(np.uint8), stored.view(np.uint8))
    return np.concatenate(parts, axis=1)


_ENCODERS: dict[TensorType, Callable[[NDArray[np.float32]], NDArray[Any] | None]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_0: _q4_0,
    TensorType.Q6_K: _q6_k,
}
