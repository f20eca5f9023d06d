"""Appending to the KV cache, and one head of it for attention.py, whatever the cache is: chosen by its type when a step is compiled, so
that only the kernels of that one type are. A head is named by layer and kv.
"""

from numba import types
from numba.extending import overload, register_jitable

from .attention import Work
from .float_cache import store_key, store_value
from .kv_cache import Cache, QuantisedCache
from .quantised_cache import round_query
from .quantised_cache import store_key as store_key_codes
from .quantised_cache import store_value as store_value_codes

# Not kernels: those are compiled without reference counts and must return no arrays to Python.


@register_jitable
def work_of(s, thread):
    """The Work of one thread, from a Scratch."""
    return Work(
        s.queries[thread],
        s.scores[thread],
        s.shares[thread],
        s.attended[thread],
        s.panel[2 * thread],
        s.softmax[thread],
        s.lengths[thread],
        s.places[thread],
    )


@register_jitable
def _floats_of(cache, layer, kv):
    return Cache(cache.keys[layer, kv], cache.values[layer, kv])


@register_jitable
def _codes_of(cache, layer, kv):
    return QuantisedCache(
        cache.keys[layer, kv],
        cache.values[layer, kv],
        cache.key_steps[layer, kv],
        cache.value_steps[layer, kv],
        cache.first_key[layer, kv],
        cache.first_value[layer, kv],
    )


def _append_floats(cache, layer, kv, p, first, dim, key, source, at):
    store_key(cache.keys[layer, kv], p, key, dim)
    store_value(cache.values[layer, kv], p, source, at, dim)


def _append_codes(cache, layer, kv, p, first, dim, key, source, at):
    head = _codes_of(cache, layer, kv)
    store_key_codes(head, p, first, key, dim)
    store_value_codes(head, p, first, source, at, dim, key)


# Each function below is what Python calls; the `overload` after it, what Numba puts in its place where a kernel calls it.


def append(cache, layer, kv, p, first, dim, key, source, at):
    """key: (>= dim,) float32, rotated, and the value source[at : at + dim] go to place p of the cache. `key` is overwritten.

    first: the page, if they are a text's first; -1 if not.
    """
    (_append_floats if isinstance(cache, Cache) else _append_codes)(cache, layer, kv, p, first, dim, key, source, at)


@overload(append, inline="always")
def _append(cache, layer, kv, p, first, dim, key, source, at):
    return _append_floats if cache.instance_class is Cache else _append_codes


def head_of(cache, layer, kv):
    """The cache of one head: its arrays without layers and kv_heads."""
    return (_floats_of if isinstance(cache, Cache) else _codes_of)(cache, layer, kv)


@overload(head_of, inline="always")
def _head_of(cache, layer, kv):
    return _floats_of if cache.instance_class is Cache else _codes_of


def perhaps_round(bits, q, at, dim):
    """q[at : at + dim] float32 -> what is left of it in 4 bits, in place. bits: 4; None: nothing happens, and nothing is compiled."""
    if bits is not None:
        round_query(q[at:], dim)


@overload(perhaps_round, inline="always")
def _perhaps_round(bits, q, at, dim):
    if isinstance(bits, types.NoneType):
        return lambda bits, q, at, dim: None
    return lambda bits, q, at, dim: round_query(q[at:], dim)
