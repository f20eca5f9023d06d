"""Appending to the KV cache and attending over it, whatever the cache is: chosen by its type when a step is compiled, so that only the
kernels of that one type are. Arguments as in attention.py, quantised_attention.py and quantised_cache.py; a head is named by layer and kv.
"""

from numba import types
from numba.extending import overload, register_jitable

from . import attention as plain
from . import quantised_attention as quantised
from .kv_cache import Cache, QuantisedCache
from .quantised_cache import round_query
from .quantised_cache import store_key as store_key_codes
from .quantised_cache import store_value as store_value_codes

store_key, store_value, attend_floats, attend_one_floats = plain.store_key, plain.store_value, plain.attend, plain.attend_one
attend_codes, attend_one_codes = quantised.attend, quantised.attend_one


@register_jitable  # not a kernel: those are compiled without reference counts and must return no arrays to Python
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


def _append_floats(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    store_key(cache.keys[layer, kv], p, key, dim)
    store_value(cache.values[layer, kv], p, source, at, dim)


def _append_codes(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    head = _head(cache, layer, kv)
    store_key_codes(head, p, key, dim)
    store_value_codes(head, p, source, at, dim, key)


def _attend_floats(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    attend_floats(q, lengths, cache.keys[layer, kv], cache.values[layer, kv], dim, scores, out, window)


def _attend_codes(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    attend_codes(q, lengths, _head(cache, layer, kv), dim, scores, out, window)


def _attend_one_floats(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    attend_one_floats(q, at, length, cache.keys[layer, kv], cache.values[layer, kv], dim, scores, out, place, window)


def _attend_one_codes(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    attend_one_codes(q, at, length, _head(cache, layer, kv), dim, scores, out, place, window)


# Each function below is what Python calls; the `overload` after it, what Numba puts in its place where a kernel calls it.


def append(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    """key: (>= dim,) float32, rotated, and the value source[at : at + dim] become position p. `key` is overwritten."""
    (_append_floats if isinstance(cache, Cache) else _append_codes)(cache, layer, kv, p, dim, key, source, at)


@overload(append, inline="always")
def _append(cache, layer, kv, p, dim, key, source, at):  # type: ignore[no-untyped-def]
    return _append_floats if cache.instance_class is Cache else _append_codes


def attend(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    """Four queries."""
    (_attend_floats if isinstance(cache, Cache) else _attend_codes)(cache, layer, kv, q, lengths, dim, scores, out, window)


@overload(attend, inline="always")
def _attend(cache, layer, kv, q, lengths, dim, scores, out, window):  # type: ignore[no-untyped-def]
    return _attend_floats if cache.instance_class is Cache else _attend_codes


def attend_one(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    """One query."""
    one = _attend_one_floats if isinstance(cache, Cache) else _attend_one_codes
    one(cache, layer, kv, q, at, length, dim, scores, out, place, window)


@overload(attend_one, inline="always")
def _attend_one(cache, layer, kv, q, at, length, dim, scores, out, place, window):  # type: ignore[no-untyped-def]
    return _attend_one_floats if cache.instance_class is Cache else _attend_one_codes


def perhaps_round(bits, q, at, dim):  # type: ignore[no-untyped-def]
    """q[at : at + dim] float32 -> what is left of it in 4 bits, in place. bits: 4; None: nothing happens, and nothing is compiled."""
    if bits is not None:
        round_query(q[at:], dim)


@overload(perhaps_round, inline="always")
def _perhaps_round(bits, q, at, dim):  # type: ignore[no-untyped-def]
    if isinstance(bits, types.NoneType):
        return lambda bits, q, at, dim: None
    return lambda bits, q, at, dim: round_query(q[at:], dim)
