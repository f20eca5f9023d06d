"""New keys and values -> a Cache, whose numbers are float32 or float16 (layouts: kv_cache.py). Twin: naive/attention.py, `store`."""

import numpy as np
from numba import types
from numba.extending import overload

from .jit import kernel
from .simd import selected

to_f16 = selected.to_f16


def _cached(array, value):
    """`value` in the type that the cache array holds."""
    return to_f16(value) if array.dtype == np.uint16 else value


@overload(_cached, inline="always")
def _cached_when_compiled(array, value):
    return (lambda array, value: to_f16(value)) if array.dtype == types.uint16 else (lambda array, value: value)


@kernel
def store_key(keys, p, source, dim):
    """keys: (blocks, dim, 16) of one head; source: (>= dim,) float32 becomes position p."""
    for d in range(dim):
        keys[p // 16, d, p % 16] = _cached(keys, source[d])


@kernel
def store_value(values, p, source, at, dim):
    """values: (positions, width) of one head; source[at : at + dim] becomes position p."""
    for d in range(dim):
        values[p, d] = _cached(values, source[at + d])
