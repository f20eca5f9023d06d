"""Blocks of the KV cache -> panels of float32 for attention.py, whatever the cache is, and what its codes' steps do to scores and weights.

A panel is 64 lanes wide: 64 keys, element by element, or 64 columns of values, position by position. Codes lie in it without their steps:
a block's scores are multiplied by those of the keys, and those of the values go into the softmax weights. The kind of cache is known when a
step is compiled, so only its own functions are. Twins: naive/attention.py and naive/kv_cache.py, `stored`.
"""

import numpy as np
from numba.extending import overload

from .jit import kernel
from .kv_cache import ROWS, UNIT, Cache
from .simd import cached, floats, selected
from .simd.vectors import flattened

load, store, mul, load_cached = floats.load_f32, floats.store_f32, floats.mul_f32, selected.load_float
lower_keys, upper_keys, four_values = cached.lower_keys, cached.upper_keys, cached.four_values
load_steps, value_bits, unit_size = cached.load_steps, cached.value_bits, cached.unit_size
_UNIT, _ROWS = np.int64(UNIT), np.int64(ROWS)


@kernel
def key_place(head, position):
    """Element of `keys` at which the 16 keys begin that `position` is among."""
    return position // 16 * (head.keys.size // head.keys.shape[0])


@kernel
def value_place(head, position, column):
    """Element of `values` at which column 0, 64, 128 ... of a position begins."""
    return position * (head.values.size // head.values.shape[0]) + column // _UNIT * unit_size(head)


@kernel
def _float_keys(head, first, count, dim, whole, panel):
    keys = flattened(head.keys)
    for v in range(count):
        base, to = (first + v) * dim * 16, v * 16
        for d in range(dim):
            store(panel, to + d * _UNIT, load_cached(keys, base + d * 16))


@kernel
def _code_keys(head, first, count, dim, whole, panel):
    keys, rows, bits = head.keys, (dim + _ROWS - 1) // _ROWS * _ROWS, value_bits(head.values)
    for v in range(count):
        base, to = (first + v) * rows, v * 16
        for row in range(0, rows, _ROWS):
            k0, k1, k2, k3 = lower_keys(keys, base + row)
            _store_four(panel, to + row * _UNIT, _UNIT, k0, k1, k2, k3)
            k0, k1, k2, k3 = upper_keys(keys, base + row)
            _store_four(panel, to + (row + 4) * _UNIT, _UNIT, k0, k1, k2, k3)
    if bits == 3 and whole >= 0:
        for d in range(dim):
            panel[d * _UNIT] = head.first_key[whole, d]


@kernel
def _store_four(panel, at, stride, a, b, c, d):
    store(panel, at, a)
    store(panel, at + stride, b)
    store(panel, at + 2 * stride, c)
    store(panel, at + 3 * stride, d)


@kernel
def _float_values(head, first, last, column, whole, panel):
    values, width = flattened(head.values), head.values.shape[1]
    count = min(width - column, _UNIT)
    for j in range(first, last):
        at, to = j * width + column, (j - first) * _UNIT
        for d in range(0, count, 16):
            store(panel, to + d, load_cached(values, at + d))


@kernel
def _code_values(head, first, last, column, whole, panel):
    values, bits = head.values, value_bits(head.values)
    row, byte = values.size // values.shape[0], column * bits // 8
    end = row - byte - 16  # where a row ends sooner its last 16 bytes come again, as columns that nobody uses
    second, third, fourth = min(16, end), min(32, end), min(48, end)
    for j in range(first, last):
        v0, v1, v2, v3 = four_values(values, j * row + byte, second, third, fourth)
        _store_four(panel, (j - first) * _UNIT, np.int64(16), v0, v1, v2, v3)
    if bits == 3 and whole >= 0:
        for d in range(_UNIT):
            panel[d] = head.first_value[whole, column + d]


@kernel
def first_is_whole(head, whole):
    """Whether key and value of a place are no codes. whole: its page, if it is a text's first; -1 if not."""
    return whole >= 0 and value_bits(head.values) == 3


@kernel
def _times_code_steps(head, values, start, whole, scores, at, first, last):
    steps, kept = head.value_steps if values else head.key_steps, scores[at]
    for j in range(first, last, 16):
        store(scores, at + j, mul(load(scores, at + j), load_steps(steps, start + j)))
    if first_is_whole(head, whole):
        scores[at] = kept


# Names for kernels; what Numba puts in their places says the `overload` after each: functions that are not compiled yet, so a kernel's name
# alone will not do.


def unpack_keys(head, first, count, dim, whole, panel):
    """`count` times 16 keys, from the 16 number `first` on: element d of key j -> panel[d * 64 + j].

    whole: the page that has the first one as it is, if it is a text's first and no code; else -1.
    """


@overload(unpack_keys, inline="always")
def _unpack_keys(head, first, count, dim, whole, panel):
    if head.instance_class is Cache:
        return lambda head, first, count, dim, whole, panel: _float_keys(head, first, count, dim, whole, panel)  # noqa: PLW0108
    return lambda head, first, count, dim, whole, panel: _code_keys(head, first, count, dim, whole, panel)  # noqa: PLW0108


def unpack_values(head, first, last, column, whole, panel):
    """64 columns, or those that there are, of positions first <= p < last: column + i of p -> panel[(p - first) * 64 + i]."""


@overload(unpack_values, inline="always")
def _unpack_values(head, first, last, column, whole, panel):
    if head.instance_class is Cache:
        return lambda head, first, last, column, whole, panel: _float_values(head, first, last, column, whole, panel)  # noqa: PLW0108
    return lambda head, first, last, column, whole, panel: _code_values(head, first, last, column, whole, panel)  # noqa: PLW0108


def times_steps(head, values, start, whole, scores, at, first, last):
    """scores[at + j], first <= j < last in 16s, of place start + j: products with a key's codes -> with the key; or, where `values`,
    weights of values -> of their codes.
    """


@overload(times_steps, inline="always")
def _times_steps(head, values, start, whole, scores, at, first, last):
    def none(head, values, start, whole, scores, at, first, last):
        pass

    def codes(head, values, start, whole, scores, at, first, last):
        _times_code_steps(head, values, start, whole, scores, at, first, last)

    return none if head.instance_class is Cache else codes


@kernel
def _copy_rows(array, unit, source, target, count):
    """Rows of an array, `unit` elements each: `count` of them from `source` on to `target`."""
    flat = flattened(array)
    for i in range(count * unit):
        flat[target * unit + i] = flat[source * unit + i]


@kernel
def _copy_floats(head, source, target):
    keys, values = head.keys, head.values
    _copy_rows(keys, keys.size // keys.shape[0], source // 16, target // 16, 1)
    _copy_rows(values, values.size // values.shape[0], source, target, 16)


@kernel
def _copy_codes(head, source, target):
    _copy_floats(head, source, target)
    for j in range(16):
        head.key_steps[target + j] = head.key_steps[source + j]
        head.value_steps[target + j] = head.value_steps[source + j]


def copy_positions(head, source, target):
    """Keys and values of 16 positions from one place of the cache to another."""


@overload(copy_positions, inline="always")
def _copy_positions(head, source, target):
    if head.instance_class is Cache:
        return lambda head, source, target: _copy_floats(head, source, target)  # noqa: PLW0108
    return lambda head, source, target: _copy_codes(head, source, target)  # noqa: PLW0108
