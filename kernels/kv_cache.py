"""The KV cache: keys, after RoPE, and values of every position, in 32, 16, 8, 4 or 3 bits a number. Twin of the packing: naive/kv_cache.py.

Keys lie in blocks of 16 positions: neighbours in memory are one element of 16 keys. Values lie position by position.
blocks = context / 16 rounded up. What is past the context's end, or past head_dim in a row, is never used.

f32, f16   the numbers themselves
q8         one byte a number, code -127 .. 127:  number = step * code,  step = max|x| / 127
q4, q3     unsigned codes 0 .. 2^bits - 1 that cover -max|x| .. max|x| evenly (facts: BitNet a4.8, low-bit attention: "unsigned integers
           with absmax", no calibration):  number = step * (code - half),  step = max|x| / half,  half = 7.5 or 3.5
           q3 keeps the text's first token whole (the paper: at 4 bits or more); most heads look at it all the time

One step a position and KV head, keys and values each, as the upper half of a float32 (bfloat16), rounded up so that no code overflows:
16 bits a head. So head_dim 128 takes 8.13, 4.13 and 3.13 bits a number, 64 takes 8.25, 4.25 and 3.25. Others are rounded up to what is
unpacked together: 96 takes 8.17, 4.17 and 3.67, 100 takes 8.80, 4.80 and 3.64.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOAT_TYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.uint16)}
QUANTISED_BITS = {"q8": 8, "q4": 4, "q3": 3}
CACHE_TYPES = (*FLOAT_TYPES, *QUANTISED_BITS)
ROWS = 8  # of keys that are unpacked together: head_dim is rounded up to them
COLUMNS = 64  # of values that are unpacked together
# Attention takes positions in blocks of this many, from position 0 on. The bits of a result depend on it, and on nothing else that could
# be chosen: it divides whatever a cache is cut into.
BLOCK = 128
CACHE_LINE = 64  # bytes
UNIT = 64  # keys, or columns of values, that attention unpacks at once


class Cache(NamedTuple):
    """width = head_dim rounded up to 16. float32, or float16 kept as its bits in uint16 (Numba has no float16 on CPUs)."""

    keys: NDArray[np.float32] | NDArray[np.uint16]  # (layers, kv_heads, blocks, head_dim, 16): position p is [..., p // 16, :, p % 16]
    values: NDArray[np.float32] | NDArray[np.uint16]  # (layers, kv_heads, 16 * blocks, width)


class QuantisedCache(NamedTuple):
    """Kernels tell the kinds apart by the arrays' types and dimensions. rows = head_dim rounded up to 8; widths are rounded up as well.

    keys    q8 int8 (layers, kv_heads, blocks, rows, 16)
            q4 uint8 (layers, kv_heads, blocks, rows / 2, 16): elements 2i in the lower half of a byte, 2i + 1 in the upper
            q3 uint8 (layers, kv_heads, blocks, rows / 8, 3, 16): 8 elements in 24 bits, the first lowest, byte by byte
    values  q8 int8 (layers, kv_heads, positions, head_dim to 16)
            q4 uint8 (layers, kv_heads, positions, head_dim to 32, / 2): of 32 elements i in the lower half of byte i, i + 16 in the upper
            q3 uint8 (layers, kv_heads, positions, head_dim to 64, / 64, 24): of 64 elements i, i + 16, i + 32 and i + 48 in 12 bits from
            bit 12 i on
    """

    keys: NDArray[np.int8] | NDArray[np.uint8]
    values: NDArray[np.int8] | NDArray[np.uint8]
    key_steps: NDArray[np.uint16]  # (layers, kv_heads, 16 * blocks) upper halves of float32
    value_steps: NDArray[np.uint16]  # (layers, kv_heads, 16 * blocks)
    first_key: NDArray[np.float32]  # (layers, kv_heads, head_dim to 64) of position 0; q8 and q4: (layers, kv_heads, 0)
    first_value: NDArray[np.float32]


AnyCache = Cache | QuantisedCache


def rounded(number: int, unit: int) -> int:
    """`number` rounded up to whole units."""
    return -(-number // unit) * unit


def zeros(shape: int | tuple[int, ...], dtype: type[np.generic] | np.dtype[Any]) -> NDArray[Any]:
    """As np.zeros, which begins at any 16 bytes. Here at a cache line: loads that cross two made prefill up to 10 % slower."""
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _shapes(kind: str, layers: int, kv_heads: int, dim: int, context: int) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and type of each array of a cache, in the order of its fields."""
    blocks, rows = rounded(context, 16) // 16, rounded(dim, ROWS)
    heads, positions = (layers, kv_heads), 16 * blocks
    if kind in FLOAT_TYPES:
        return [((*heads, blocks, dim, 16), FLOAT_TYPES[kind]), ((*heads, positions, rounded(dim, 16)), FLOAT_TYPES[kind])]
    keys, values = {
        "q8": ((blocks, rows, 16), (positions, rounded(dim, 16))),
        "q4": ((blocks, rows // 2, 16), (positions, rounded(dim, 32) // 2)),
        "q3": ((blocks, rows // 8, 3, 16), (positions, rounded(dim, COLUMNS) // COLUMNS, 24)),
    }[kind]
    codes = np.int8 if kind == "q8" else np.uint8
    first = (*heads, rounded(dim, COLUMNS) if kind == "q3" else 0)
    steps = ((*heads, positions), np.uint16)
    return [((*heads, *keys), codes), ((*heads, *values), codes), steps, steps, (first, np.float32), (first, np.float32)]


def cache_bytes(kind: str, layers: int, kv_heads: int, head_dim: int, context: int) -> int:
    """Bytes of a cache when full, without allocating it."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _shapes(kind, layers, kv_heads, head_dim, context))


def new_cache(layers: int, kv_heads: int, head_dim: int, context: int, kind: str = "f32") -> AnyCache:
    """An empty cache of a kind in CACHE_TYPES. Zeros: the operating system gives the memory when it is first written."""
    parts = [zeros(shape, dtype) for shape, dtype in _shapes(kind, layers, kv_heads, head_dim, context)]
    return Cache(*parts) if kind in FLOAT_TYPES else QuantisedCache(*parts)
