"""New keys and values -> codes in a QuantisedCache (formulas and layouts: kv_cache.py). Twin: naive/kv_cache.py, to the bit."""

import numpy as np

from .jit import kernel
from .kv_cache import ROWS
from .quantise import largest_magnitude
from .simd import cached
from .simd.vectors import flattened

value_bits = cached.value_bits
_ROWS, _QUERY_BITS = np.int64(ROWS), np.int64(4)
# Keeps 1 / step finite where all numbers are zero. Far below what matters: norms follow only after sums over all heads.
SMALLEST_SCALE = np.float32(1e-30)


@kernel
def step_bits(step):
    """float32 > 0 -> the upper half of its bits, rounded up; infinity and NaN stay what they are."""
    bits = np.int64(np.float32(step).view(np.int32))
    return (bits + 0xFFFF) >> 16 if bits <= 0x7F800000 else np.int64(0x7FC0)


@kernel
def _codes(x, dim, bits):
    """x[:dim] float32 -> its codes, unsigned ones for 4 and 3 bits, in place, as whole floats; returns the step's upper half."""
    middle = np.float32(0.0) if bits == 8 else np.float32((1 << bits) - 1) / np.float32(2.0)
    largest = np.float32(127.0) if bits == 8 else middle
    half = step_bits(largest_magnitude(x, dim, SMALLEST_SCALE) / largest)
    inverse = np.float32(1.0) / np.int32(half << 16).view(np.float32)
    for d in range(dim):
        x[d] = np.rint(x[d] * inverse + middle)  # in range: the step was rounded up
    return half


@kernel
def round_query(x, dim):
    """x[:dim] float32 -> what is left of it in 4 bits, as of a key in the cache q4 (BitNet a4.8, arXiv 2411.04965)."""
    step = np.int32(_codes(x, dim, _QUERY_BITS) << 16).view(np.float32)
    for d in range(dim):
        x[d] = (x[d] - np.float32(7.5)) * step


@kernel
def _code(x, d, dim):
    return np.int64(x[d]) if d < dim else np.int64(0)


@kernel
def _keep(x, dim, out):
    for d in range(len(out)):
        out[d] = x[d] if d < dim else np.float32(0.0)


@kernel
def store_key(head, p, first, x, dim):
    """head: QuantisedCache of one head, its arrays without layers and kv_heads; x: (>= dim,) float32, overwritten, goes to place p.

    first: the page, if it is a text's first key; -1 if not.
    A byte of keys is one position's alone, so threads that write neighbours do not meet in it.
    """
    keys, bits = flattened(head.keys), value_bits(head.values)
    if bits == 3 and first >= 0:
        _keep(x, dim, head.first_key[first])
    head.key_steps[p] = _codes(x, dim, bits)
    rows, lane = (dim + _ROWS - 1) // _ROWS * _ROWS, p % 16
    base = p // 16 * rows * 2 * bits  # 16 lanes of `bits` bits a row
    if bits == 8:
        for d in range(rows):
            keys[base + d * 16 + lane] = _code(x, d, dim)
    elif bits == 4:
        for d in range(0, rows, 2):
            keys[base + d * 8 + lane] = _code(x, d, dim) | _code(x, d + 1, dim) << 4
    else:
        for d in range(0, rows, 8):
            word = np.int64(0)
            for i in range(8):
                word |= _code(x, d + i, dim) << (3 * i)
            for part in range(3):
                keys[base + d * 6 + part * 16 + lane] = word >> (8 * part) & 0xFF


@kernel
def store_value(head, p, first, source, at, dim, x):
    """source[at : at + dim] goes to place p. x: (>= dim,) float32, overwritten. Otherwise as `store_key`."""
    values, bits = flattened(head.values), value_bits(head.values)
    for d in range(dim):
        x[d] = source[at + d]
    if bits == 3 and first >= 0:
        _keep(x, dim, head.first_value[first])
    head.value_steps[p] = _codes(x, dim, bits)
    row = head.values.size // head.values.shape[0]
    base = p * row
    if bits == 8:
        for d in range(row):
            values[base + d] = _code(x, d, dim)
    elif bits == 4:
        for byte in range(row):
            d = byte // 16 * 32 + byte % 16
            values[base + byte] = _code(x, d, dim) | _code(x, d + 16, dim) << 4
    else:
        for pair in range(row // 3):  # two lanes of 12 bits are three bytes
            word = np.int64(0)
            for i in range(8):
                d = pair // 8 * 64 + pair % 8 * 2 + i // 4 + i % 4 * 16
                word |= _code(x, d, dim) << (3 * i)
            for part in range(3):
                values[base + pair * 3 + part] = word >> (8 * part) & 0xFF
