"""Tokens fed in any pieces, taken back, fed again: the logits are those of the text fed whole, with every type of KV cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.kv_cache import CACHE_TYPES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.sequence import Sequence

# A feed of so many tokens at once, or a step back of so many. Prefill by 128 tokens, by few, and decode have kernels of their own.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.sampled_from([1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 60, 127, 128, 129, 140])),
        st.tuples(st.just("batch"), st.integers(1, 20)),
        st.tuples(st.just("back"), st.integers(1, 150)),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def pair(long_file: Path) -> Any:
    """pair(cache type): texts of two engines over one file, of one and of two threads."""
    from bitnet_cli.gguf_file.reader import open_gguf

    made: dict[str, tuple[Sequence, Sequence]] = {}
    with open_gguf(long_file) as file:

        def get(kind: str) -> tuple[Sequence, Sequence]:
            if kind not in made:
                one, two = (Sequence(Engine(file, context=300, cache_type=kind, threads=threads)) for threads in (1, 2))
                made[kind] = one, two
            return made[kind]

        yield get
        for both in made.values():
            for text in both:
                text.engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CACHE_TYPES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, seed=st.integers(0, 2**32 - 1))
def test_pieces_are_the_whole(pair: Any, kind: str, steps: list[tuple[str, int]], seed: int) -> None:
    whole, pieces = pair(kind)
    rng, text = np.random.default_rng(seed), list[int]()
    pieces.rewind(0)
    logits = None
    for what, count in steps:
        if what == "back":
            del text[max(len(text) - count, 0) :]
            pieces.rewind(len(text))
            logits = None
            continue
        ids = [int(i) for i in rng.integers(0, 256, min(count, 299 - len(text)))]
        if not ids:
            continue
        text += ids
        if what == "batch":
            (found,) = pieces.engine.step([Row(pieces, ids, range(len(ids)))])
            logits = found[-1].copy()
        else:
            logits = pieces.feed(ids).copy()
    if logits is None:
        text.append(7)
        logits = pieces.feed([7]).copy()
    whole.rewind(0)
    assert np.array_equal(whole.feed(text), logits)
    assert whole.position == pieces.position == len(text)
