"""A context of 32,768 tokens: memory grows in proportion to it, and attention at its last position is right."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import control, isa
from bitnet_kernels.naive import attention as naive_attention
from bitnet_kernels.naive import step as naive_step

from bitnet_cli.model.sequence import Sequence

from .builder import Sizes, random_model, write_model

CONTEXT = 32768


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("long") / "m.gguf", random_model(Sizes(layers=1, context=CONTEXT), seed=11))


def nbytes(value: Any) -> int:
    """Of an array, or a tuple of arrays in any depth; numbers take none."""
    return sum(map(nbytes, value)) if isinstance(value, tuple) else getattr(value, "nbytes", 0)


def parts(decoder: Sequence) -> tuple[int, int, int]:
    """Bytes of cache, scratch and tables."""
    _, weights, cache, scratch = decoder.engine.arrays
    return nbytes(cache), nbytes(scratch), nbytes(weights.cos) + nbytes(weights.sin)


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8", "q4", "q3"])
@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_linear(path: Path, text_of: Callable[..., Sequence], cache_type: str, threads: int) -> None:
    """Twice the context adds twice as much. Scratch: what one token sees in each block of 128 positions, where threads share a KV head."""
    small, middle, large = (text_of(path, context=CONTEXT // part, cache_type=cache_type, threads=threads) for part in (4, 2, 1))
    for a, b, c in zip(parts(small), parts(middle), parts(large), strict=True):
        assert c - b == 2 * (b - a)
    assert parts(large)[0] == large.engine.cache_bytes()
    z = large.engine.arrays.sizes
    block = 4 * (z.heads // z.kv_heads) * (128 + 16)
    assert parts(large)[1] - parts(middle)[1] == (block * (threads - 1) * CONTEXT // 2 // 128 if z.kv_heads % threads else 0)


@pytest.mark.parametrize("cache_type", ["f32", pytest.param("q4", marks=pytest.mark.slow)])
def test_attention_at_the_last_position(path: Path, text_of: Callable[..., Sequence], cache_type: str) -> None:
    """Over 32,767 positions of random keys and values: logits as the twin's from the same cache. One query, then a chunk of five."""
    decoder = text_of(path, context=CONTEXT, cache_type=cache_type)
    z, rng = decoder.engine.arrays.sizes, np.random.default_rng(1)
    keys, values = rng.standard_normal((2, CONTEXT, z.kv_heads, z.head_dim)).astype(np.float32)
    naive_attention.store(decoder.engine.arrays.cache, 0, 0, keys, values)
    for tokens in (1, 5):
        x = rng.standard_normal((tokens, z.hidden)).astype(np.float32)
        decoder.engine.arrays.scratch.x[:tokens] = x
        decoder.engine.team.run(tokens, CONTEXT - tokens, 0, 1, [control.Wanted(tokens - 1)])
        logits = decoder.engine.arrays.scratch.logits[0].copy()
        step = control.new_control()
        step[[control.TOKENS, control.POSITION, control.LAST_LAYER, control.WANTED]] = tokens, CONTEXT - tokens, 1, 1
        decoder.engine.arrays.scratch.x[:tokens] = x
        naive_step.run_step(z, decoder.engine.arrays.weights, decoder.engine.arrays.cache, decoder.engine.arrays.scratch, step)
        expected = decoder.engine.arrays.scratch.logits[0]
        assert np.abs(logits - expected).max() <= (0 if isa.chosen() == isa.NAIVE else 1e-4) * np.abs(expected).max()


@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the twin adds in NumPy's order")
@pytest.mark.parametrize("cache_type", ["f16", "q3"])
def test_bits_depend_on_positions_alone(tmp_path: Path, text_of: Callable[..., Sequence], cache_type: str) -> None:
    """Logits of 300 tokens: however they are cut, by any number of threads, also where these share KV heads (3 heads, 2 and 4 threads)."""
    path = write_model(tmp_path / "m.gguf", random_model(Sizes(heads=12, kv_heads=3, context=320), seed=12))
    ids = np.random.default_rng(2).integers(0, 260, 300).tolist()
    results = set()
    for threads, cuts in ((1, [300]), (2, [130, 290]), (2, [5, 250]), (4, [127, 128, 131])):
        decoder = text_of(path, context=320, cache_type=cache_type, threads=threads)
        edges = sorted({0, *cuts, *range(cuts[-1], 301)})
        for first, last in itertools.pairwise(edges):
            logits = decoder.feed(ids[first:last])
        results.add(np.asarray(logits).tobytes())
    assert len(results) == 1
