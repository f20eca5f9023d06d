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
import mmap
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
ON_THE_HEAP, HUGE = 1 << 16, 4 << 20  # bytes: less comes from the C library; more on huge pages, as by NumPy
UNIT = 64  # keys, or columns of values, that attention unpacks at once


class Table(NamedTuple):
    """Where a text's positions lie: page i of `size` positions is page numbers[i] of the cache."""

    numbers: NDArray[np.int64]
    size: int

    def places(self, first: int, last: int) -> NDArray[np.int64]:
        """Of positions first <= p < last, in the cache's arrays."""
        p = np.arange(first, last)
        return self.numbers[p // self.size] * self.size + p % self.size


# A cache that is one page.
ONE_PAGE = Table(np.zeros(1, np.int64), 1 << 62)


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
    first_key: NDArray[
        np.float32
    ]  # (layers, kv_heads, pages, head_dim to 64) of a page that begins a text; q8, q4: (layers, kv_heads, 0, 0)
    first_value: NDArray[np.float32]


AnyCache = Cache | QuantisedCache


def rounded(number: int, unit: int) -> int:
    """`number` rounded up to whole units."""
    return -(-number // unit) * unit


def _own_pages(size: int) -> NDArray[np.uint8]:
    """Zeros that the system gets back at once when nobody holds them. The C library keeps what it thinks it can use again: a model that was
    loaded again eight times left 10 MB (docs/log.md#notebook).
    """
    if size < ON_THE_HEAP or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.zeros(size, np.uint8)
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(region, np.uint8)


def zeros(shape: int | tuple[int, ...], dtype: type[np.generic] | np.dtype[Any]) -> NDArray[Any]:
    """As np.zeros, which begins at any 16 bytes. Here at a cache line: loads that cross two made prefill up to 10 % slower."""
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    raw = _own_pages(size + CACHE_LINE)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _shapes(kind: str, layers: int, kv_heads: int, dim: int, pages: int, size: int, spare: int) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and type of each array of a cache, in the order of its fields."""
    positions, rows, heads = rounded(pages * size, 16) + spare * BLOCK, rounded(dim, ROWS), (layers, kv_heads)
    blocks = positions // 16
    if kind in FLOAT_TYPES:
        return [((*heads, blocks, dim, 16), FLOAT_TYPES[kind]), ((*heads, positions, rounded(dim, 16)), FLOAT_TYPES[kind])]
    keys, values = {
        "q8": ((blocks, rows, 16), (positions, rounded(dim, 16))),
        "q4": ((blocks, rows // 2, 16), (positions, rounded(dim, 32) // 2)),
        "q3": ((blocks, rows // 8, 3, 16), (positions, rounded(dim, COLUMNS) // COLUMNS, 24)),
    }[kind]
    codes = np.int8 if kind == "q8" else np.uint8
    first = (*heads, pages, rounded(dim, COLUMNS)) if kind == "q3" else (*heads, 0, 0)
    steps = ((*heads, positions), np.uint16)
    return [((*heads, *keys), codes), ((*heads, *values), codes), steps, steps, (first, np.float32), (first, np.float32)]


def cache_bytes(kind: str, layers: int, kv_heads: int, head_dim: int, size: int, pages: int = 1) -> int:
    """Bytes of a cache of `pages` pages of `size` positions when full, without allocating it."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _shapes(kind, layers, kv_heads, head_dim, pages, size, 0))


def new_cache(layers: int, kv_heads: int, head_dim: int, size: int, kind: str = "f32", pages: int = 1, spare: int = 0) -> AnyCache:
    """An empty cache of a kind in CACHE_TYPES, in `pages` pages of `size` positions; size: a multiple of 16 where there are several.

    spare: blocks behind them, one for each thread, in which pages smaller than a block are put together.
    Zeros: the operating system gives the memory of a page when it is first written.
    """
    parts = [zeros(shape, dtype) for shape, dtype in _shapes(kind, layers, kv_heads, head_dim, pages, size, spare)]
    return Cache(*parts) if kind in FLOAT_TYPES else QuantisedCache(*parts)
