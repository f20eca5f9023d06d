"""Float tensors -> bytes of a GGUF tensor type, a chunk of rows at a time: F32, F16, and Q8_0 for the embedding and the head.

Q8_0: 32 weights in 34 bytes, a float16 scale d = max|x| / 127 and 32 int8 values round(x / d), halves away from zero (ggml-quants.c,
`quantize_row_q8_0_ref`). Every type refuses NaN and Inf, and values that would become Inf.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import TensorType, nbytes

Q8_0_BLOCK = 32


def require_blocks(tensor: StoredTensor, kind: TensorType) -> None:
    """UnsupportedError where the rows of `tensor` are not whole blocks of `kind`."""
    if kind is TensorType.Q8_0 and tensor.shape[-1] % Q8_0_BLOCK:
        raise UnsupportedError(f"{tensor.path}: {tensor.name}: Q8_0 needs rows of a multiple of {Q8_0_BLOCK}, not {tensor.shape[-1]}")


def encode(tensor: StoredTensor, kind: TensorType) -> NDArray[np.uint8]:
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


_ENCODERS: dict[TensorType, Callable[[NDArray[np.float32]], NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8] | None]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.Q8_0: _q8_0,
}
