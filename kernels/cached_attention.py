"""Appending to the KV cache and attending over it, whatever the cache is: chosen by its type when a step is compiled, so that only the
kernels of that one type are. Arguments as in attention.py, quantised_attention.py and quantised_cache.py; a head is named by layer and kv.
"""

from numba.extending import overload

from . import attention as plain
from . import quantised_attention as quantised
from .jit import kernel
from .kv_cache import Cache, QuantisedCache
from .quantised_cache import store_key as store_key_codes
from .quantised_cache import store_value as store_value_codes

store_key, store_value, attend_floats, attend_one_floats = plain.store_key, plain.store_value, plain.attend, plain.attend_one
attend_codes, attend_one_codes = quantised.attend, quantised.attend_one


@kernel
def _head(cache, layer, kv):  # type: ignore[no-untyped-def]
    """A QuantisedCache of one head."""
    return QuantisedCache(
        cache.keys[layer, kv],
        cache.values[layer, kv],
        cache.key_steps[layer, kv],
        cache.value_steps[layer, kv],
        cache.first_key[layer, kv],
        cache.first_value[layer, kv],
    )


def append(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    """key: (>= dim,) float32, rotated, and the value source[at : at + dim] become position p. `key` is overwritten."""
    raise NotImplementedError


def attend(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    """Four queries."""
    raise NotImplementedError


def attend_one(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    """One query."""
    raise NotImplementedError


@overload(append, inline="always")
def _append(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    def floats(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
        store_key(cache.keys[layer, kv], p, key, dim)
        store_value(cache.values[layer, kv], p, source, at, dim)

    def codes(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
        head = _head(cache, layer, kv)
        store_key_codes(head, p, key, dim)
        store_value_codes(head, p, source, at, dim, key)

    return floats if cache.instance_class is Cache else codes


@overload(attend, inline="always")
def _attend(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    def floats(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
        attend_floats(q, lengths, cache.keys[layer, kv], cache.values[layer, kv], dim, scores, out, window)

    def codes(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
        attend_codes(q, lengths, _head(cache, layer, kv), dim, scores, out, window)

    return floats if cache.instance_class is Cache else codes


@overload(attend_one, inline="always")
def _attend_one(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    def floats(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
        attend_one_floats(q, at, length, cache.keys[layer, kv], cache.values[layer, kv], dim, scores, out, place, window)

    def codes(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
        attend_one_codes(q, at, length, _head(cache, layer, kv), dim, scores, out, place, window)

    return floats if cache.instance_class is Cache else codes
