"""Kernels over KV caches, quantised ones above all: bytes as the twin's, attention near the twin's, bits that depend on positions alone."""

import math
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import cached_attention, quantised_cache
from bitnet_kernels.arrays import EVERYTHING
from bitnet_kernels.kv_cache import QUANTISED_BITS, QuantisedCache, new_cache
from bitnet_kernels.naive import attention as naive_attention
from bitnet_kernels.naive import kv_cache as twin
from numpy.typing import NDArray

from .attending import attend, attend_block_by_block

U = 2.0**-24
CANARY = np.float32(-1234.5)
DIMS = [2, 8, 20, 64, 80, 96, 100, 128, 256]
LENGTHS = [
    [1, 1, 1, 1],
    [1, 2, 3, 4],
    [13, 14, 15, 16],
    [15, 16, 17, 18],
    [60, 60, 64, 64],
    [62, 63, 64, 65],
    [199, 199, 200, 200],
    [255, 256, 257, 290],
]
CACHE_KINDS = ("f32", "f16", *QUANTISED_BITS)
Floats = NDArray[np.float32]


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def soiled_cache(dim: int, context: int, kind: str) -> Any:
    """Of one layer and head: unused codes are 0x55, unused steps and first tokens NaN."""
    cache = new_cache(1, 1, dim, context, kind)
    for part in cache:
        part.fill({1: 0x55, 2: 0x7FC0, 4: np.nan}[part.itemsize])  # as float16 and bfloat16, 0x7FC0 is NaN
    return cache


def head_of(cache: Any) -> QuantisedCache:
    return QuantisedCache(*(part[0, 0] for part in cache))


def run_attend(queries: Floats, cache: Any, lengths: list[int], window: int = EVERYTHING) -> Floats:
    """(4, dim) -> (4, dim), together; each query alone must agree to the bit."""
    head = head_of(cache)
    out = attend(queries, head, lengths, window)
    for i in range(4):
        assert np.array_equal(attend(queries[i : i + 1], head, lengths[i : i + 1], window)[0], out[i])
    return out


@pytest.mark.parametrize("kind", QUANTISED_BITS)
@pytest.mark.parametrize("dim", DIMS)
def test_the_cache_stores_as_the_twin_does(kind: str, dim: int) -> None:
    """Every byte: codes, steps, and the first token."""
    rng = np.random.default_rng(dim)
    keys, values = floats(rng, 35, 1, dim), floats(rng, 35, 1, dim)
    keys *= np.geomspace(1e-6, 1e6, 35, dtype=np.float32)[:, None, None]
    keys[7], values[8], values[9, 0, 0] = 0, 0, 1e30
    cache, other = new_cache(1, 1, dim, 35, kind), new_cache(1, 1, dim, 35, kind)
    naive_attention.store(other, 0, 0, keys, values)
    row = np.full(dim + 3, CANARY)
    for p in range(35):
        row[:dim] = keys[p, 0]
        quantised_cache.store_key(head_of(cache), p, 0 if p == 0 else -1, row, dim)
        source = np.concatenate([[7], values[p, 0]]).astype(np.float32)
        quantised_cache.store_value(head_of(cache), p, 0 if p == 0 else -1, source, 1, dim, row)
    assert np.all(row[dim:] == CANARY)
    for name, a, b in zip(QuantisedCache._fields, cache, other, strict=True):
        assert a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize(
    "lengths",
    [
        [1, 1, 1, 1],
        [1, 2, 3, 4],
        [13, 14, 15, 16],
        [15, 16, 17, 18],
        [60, 60, 64, 64],
        [62, 63, 64, 65],
        [199, 199, 200, 200],
        [255, 256, 257, 290],
    ],
)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", QUANTISED_BITS)
@pytest.mark.parametrize("window", [EVERYTHING, 1, 17])
def test_attend(kind: str, dim: int, lengths: list[int], window: int) -> None:
    rng = np.random.default_rng(lengths[0] * dim)
    queries, cache = floats(rng, 4, dim), soiled_cache(dim, lengths[3], kind)
    naive_attention.store(cache, 0, 0, floats(rng, lengths[3], 1, dim), floats(rng, lengths[3], 1, dim))
    keys, values = (part[0] for part in naive_attention.stored(cache, 0, lengths[3], dim))
    for query, length, result in zip(queries, lengths, run_attend(queries, cache, lengths, window), strict=True):
        seen = keys[None, :length], values[None, :length]
        expected = naive_attention.attend(query.reshape(1, 1, dim), *seen, length - 1, window)[0]
        # As for floats (test_floats.py); codes and their products with steps are exact, a weight is rounded once more.
        terms = np.abs(keys[:length]) @ np.abs(query) / np.sqrt(dim)
        bound = (2 * (dim + 6) * terms.max() + 2 * length + 12) * U * np.abs(values[:length]).max()
        assert np.max(np.abs(result - expected)) <= bound
        assert bound < 2e-2


@pytest.mark.parametrize("kind", QUANTISED_BITS)
def test_codes_of_every_size_in_every_place(kind: str) -> None:
    """With one-hot queries scores are the keys, with one position the result is its value: each code comes out exactly."""
    dim, bits = 64, QUANTISED_BITS[kind]
    cache = soiled_cache(dim, 48, kind)
    rng = np.random.default_rng(2)
    naive_attention.store(cache, 0, 0, floats(rng, 48, 1, dim), floats(rng, 48, 1, dim))
    codes = rng.integers(-127 if bits == 8 else 0, 128 if bits == 8 else 2**bits, (48, dim))
    for p in range(48):
        cache.values[0, 0, p] = twin.pack_values(codes[p], bits)
        cache.keys[0, 0, p // 16, ..., p % 16] = twin.pack_keys(codes[p], bits)
    keys, values = (part[0] for part in naive_attention.stored(cache, 0, 48, dim))
    for d in range(dim):
        query = np.zeros((4, dim), np.float32)
        query[:, d] = 1e4 * np.sqrt(dim)  # the largest key takes all the weight
        if np.sort(keys[:, d])[-1] - np.sort(keys[:, d])[-2] > 0.01:
            # All but one weight are under 1e-37.
            assert np.allclose(run_attend(query, cache, [48] * 4)[0], values[np.argmax(keys[:, d])], rtol=0, atol=1e-30)


def test_the_first_token_of_q3_is_kept_whole() -> None:
    rng = np.random.default_rng(3)
    queries, cache = floats(rng, 4, 64), soiled_cache(64, 20, "q3")
    keys, values = floats(rng, 20, 1, 64), floats(rng, 20, 1, 64)
    naive_attention.store(cache, 0, 0, keys, values)
    assert np.array_equal(run_attend(queries, cache, [1, 1, 1, 1]), np.tile(values[0], (4, 1)))
    # Nothing of its codes is read.
    whole = run_attend(queries, cache, [5, 6, 19, 20])
    head = head_of(cache)
    head.key_steps[0] = head.value_steps[0] = 0x7FC0
    assert np.array_equal(run_attend(queries, cache, [5, 6, 19, 20]), whole)


@pytest.mark.parametrize("kind", QUANTISED_BITS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(kind: str, bad: float) -> None:
    """A step of NaN or infinity; perplexity and sampling refuse such logits."""
    rng = np.random.default_rng(4)
    for field in ("keys", "values"):
        cache, x = new_cache(1, 1, 64, 20, kind), floats(rng, 2, 20, 64)
        x[int(field == "values"), 3, 5] = bad
        for p in range(20):
            quantised_cache.store_key(head_of(cache), p, 0 if p == 0 else -1, x[0, p].copy(), 64)
            quantised_cache.store_value(head_of(cache), p, 0 if p == 0 else -1, x[1, p], 0, 64, np.zeros(64, np.float32))
        steps = cache.value_steps if field == "values" else cache.key_steps
        assert not math.isfinite(float(twin.widened(steps[0, 0, 3:4])[0]))
        if field == "values":
            assert not np.isfinite(attend(floats(rng, 4, 64), head_of(cache), [20] * 4)).all()


@pytest.mark.parametrize("kind", QUANTISED_BITS)
def test_scores_far_apart(kind: str) -> None:
    """The largest score is subtracted first: nothing overflows, and one position takes all."""
    queries, keys = np.full((4, 16), 1000, np.float32), np.zeros((4, 16), np.float32)
    keys[:, 0] = [-1e4, 1e4, 0, 9e3]
    cache = soiled_cache(16, 4, kind)
    naive_attention.store(cache, 0, 0, keys[:, None], floats(np.random.default_rng(2), 4, 1, 16))
    values = naive_attention.stored(cache, 0, 4, 16)[1][0]
    assert np.allclose(run_attend(queries, cache, [2, 3, 4, 4]), values[1], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_python_reaches_the_kernels_of_the_same_type(kind: str) -> None:
    """cached_attention.py chooses by the cache's type when Numba compiles, and when Python calls."""
    rng = np.random.default_rng(5)
    dim, longest = 64, 20
    keys, values, q = floats(rng, longest, dim), floats(rng, longest, dim), floats(rng, 4 * dim)
    by_python, by_twin = new_cache(1, 1, dim, 32, kind), new_cache(1, 1, dim, 32, kind)
    for p in range(longest):
        cached_attention.append(by_python, 0, 0, p, 0 if p == 0 else -1, dim, keys[p].copy(), values[p], 0)
    naive_attention.store(by_twin, 0, 0, keys[:, None], values[:, None])
    assert all(np.array_equal(a, b) for a, b in zip(by_python, by_twin, strict=True))
    assert attend(q.reshape(4, dim), cached_attention.head_of(by_python, 0, 0), [longest] * 4).any()


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("dim", [2, 20, 64, 80, 96, 128])
@pytest.mark.parametrize("window", [EVERYTHING, 40, 200])
def test_bits_depend_on_the_position_alone(kind: str, dim: int, window: int) -> None:
    """Of a query's result: not on how many come with it, nor which, nor on whether blocks are added at once or kept and then joined."""
    longest, rng = 300, np.random.default_rng(dim)
    queries, cache = floats(rng, longest, dim), soiled_cache(dim, longest, kind)
    naive_attention.store(cache, 0, 0, floats(rng, longest, 1, dim), floats(rng, longest, 1, dim))
    head, lengths = type(cache)(*(part[0, 0] for part in cache)), list(range(1, longest + 1))
    whole = attend(queries, head, lengths, window)
    for rows in (1, 2, 3, 4, 5, 37):
        for first in (0, 126, 127, 128, 200, 256, longest - rows):
            last = min(first + rows, longest)
            assert np.array_equal(attend(queries[first:last], head, lengths[first:last], window), whole[first:last]), (rows, first)
    for position in (0, 127, 128, 260, 299):
        same, length = np.tile(queries[position], (5, 1)), [position + 1] * 5
        assert np.array_equal(attend_block_by_block(same, head, length, window), np.tile(whole[position], (5, 1)))
    keys, values = (part[0] for part in naive_attention.stored(cache, 0, longest, dim))
    expected = naive_attention.attend(queries[:, None], keys[None], values[None], 0, window)
    assert np.abs(whole - expected).max() < 1e-5
