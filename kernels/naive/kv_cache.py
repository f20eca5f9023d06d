"""Twin of kernels/quantised_cache.py: numbers -> codes and steps (formulas and layouts: kernels/kv_cache.py), and back. In NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kv_cache import ONE_PAGE, QUANTISED_BITS, QuantisedCache, Table, rounded

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]
SMALLEST_SCALE = np.float32(1e-30)


def bits_of(cache: QuantisedCache) -> int:
    """Bits a code."""
    return 8 if cache.keys.dtype == np.int8 else 4 if cache.keys.ndim == 5 else 3


def quantise(x: Floats, bits: int) -> tuple[Codes, NDArray[np.uint16]]:
    """(..., dim) -> codes of the same shape, and the upper halves of the steps, (...)."""
    middle = np.float32(0 if bits == 8 else (2**bits - 1) / 2)
    steps = np.maximum(np.abs(x).max(-1), SMALLEST_SCALE) / (np.float32(127) if bits == 8 else middle)
    halves = ((steps.view(np.uint32).astype(np.int64) + 0xFFFF) >> 16).astype(np.uint16)
    codes = np.rint(x * (np.float32(1) / widened(halves))[..., None] + middle)
    return codes.astype(np.int64), halves


def widened(halves: NDArray[np.uint16]) -> Floats:
    """Upper halves of float32 -> float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def dequantise(codes: NDArray[Any], halves: NDArray[np.uint16], bits: int) -> Floats:
    """step * (code - middle): exact, a step has 8 significant bits and a code as many."""
    middle = np.float32(0 if bits == 8 else (2**bits - 1) / 2)
    return (codes.astype(np.float32) - middle) * widened(halves)[..., None]


def _filled(codes: Codes, unit: int) -> Codes:
    """The last axis filled with zeros to whole units."""
    return np.concatenate([codes, np.zeros((*codes.shape[:-1], rounded(codes.shape[-1], unit) - codes.shape[-1]), np.int64)], -1)


def _joined(codes: Codes, bits: int) -> Codes:
    """(..., n) codes -> (...) words, the first code in the lowest bits."""
    words: Codes = (codes << bits * np.arange(codes.shape[-1])).sum(-1)
    return words


def _parted(words: NDArray[Any], bits: int, count: int) -> Codes:
    """Inverse of `_joined`."""
    codes: Codes = words[..., None].astype(np.int64) >> bits * np.arange(count) & 2**bits - 1
    return codes


def store(cache: QuantisedCache, layer: int, position: int, keys: Floats, values: Floats, table: Table = ONE_PAGE) -> None:
    """Put keys and values, (tokens, kv_heads, head_dim), at position and the following ones of a text."""
    bits = bits_of(cache)
    for t, p in enumerate(table.places(position, position + len(keys))):
        k, cache.key_steps[layer, :, p] = quantise(keys[t], bits)
        v, cache.value_steps[layer, :, p] = quantise(values[t], bits)
        cache.keys[layer, :, p // 16, ..., p % 16] = pack_keys(k, bits)
        cache.values[layer, :, p] = pack_values(v, bits)
        if position + t == 0 and bits == QUANTISED_BITS["q3"]:
            for whole, x in ((cache.first_key, keys[t]), (cache.first_value, values[t])):
                whole[layer, :, p // table.size] = 0
                whole[layer, :, p // table.size, : x.shape[1]] = x


def pack_keys(codes: Codes, bits: int) -> Codes:
    """(..., dim) -> (..., rows), (..., rows / 2) or (..., rows / 8, 3), one position's part of QuantisedCache.keys."""
    rows = _filled(codes, 8)
    if bits == 8:
        return rows
    if bits == 4:
        return _joined(rows.reshape(*rows.shape[:-1], -1, 2), 4)
    return _parted(_joined(rows.reshape(*rows.shape[:-1], -1, 8), 3), 8, 3)


def pack_values(codes: Codes, bits: int) -> Codes:
    """(..., dim) -> one position's part of QuantisedCache.values."""
    if bits == 8:
        return _filled(codes, 16)
    if bits == 4:
        pairs = _filled(codes, 32)
        return _joined(pairs.reshape(*pairs.shape[:-1], -1, 2, 16).swapaxes(-1, -2), 4).reshape(*pairs.shape[:-1], -1)
    fours = _filled(codes, 64)
    lanes = _joined(fours.reshape(*fours.shape[:-1], -1, 4, 16).swapaxes(-1, -2), 3)  # (..., groups, 16) words of 12 bits
    return _parted(_joined(lanes.reshape(*lanes.shape[:-1], 8, 2), 12), 8, 3).reshape(*lanes.shape[:-1], 24)


def stored(cache: QuantisedCache, layer: int, length: int, dim: int, table: Table = ONE_PAGE) -> tuple[Floats, Floats]:
    """Keys and values of the first `length` positions, each (kv_heads, length, dim)."""
    bits, places = bits_of(cache), table.places(0, length)
    k, v = cache.keys[layer], cache.values[layer][:, places]
    heads = len(k)
    rows: NDArray[Any]
    columns: NDArray[Any]
    if bits == 8:
        rows, columns = k, v
    elif bits == 4:
        rows = _parted(k, 4, 2).swapaxes(-1, -2)  # (heads, blocks, pairs, 2, 16)
        columns = _parted(v.reshape(heads, length, -1, 16), 4, 2).swapaxes(-1, -2)
    else:
        rows = _parted(_joined(k.swapaxes(-1, -2).astype(np.int64), 8), 3, 8).swapaxes(-1, -2)
        lanes = _parted(_joined(v.reshape(heads, length, -1, 8, 3).astype(np.int64), 8), 12, 2)
        columns = _parted(lanes.reshape(heads, length, -1, 16), 3, 4).swapaxes(-1, -2)
    rows = rows.reshape(heads, k.shape[1], -1, 16).swapaxes(2, 3)
    rows = rows.reshape(heads, 16 * k.shape[1], -1)[:, places, :dim]
    columns = columns.reshape(heads, length, -1)[..., :dim]
    steps = cache.key_steps[layer][:, places], cache.value_steps[layer][:, places]
    keys, values = (dequantise(codes, halves, bits) for codes, halves in zip((rows, columns), steps, strict=True))
    if bits == QUANTISED_BITS["q3"]:
        page = places[0] // table.size
        keys[:, 0], values[:, 0] = cache.first_key[layer, :, page, :dim], cache.first_value[layer, :, page, :dim]
    return keys, values
