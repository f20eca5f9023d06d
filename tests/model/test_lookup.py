"""Prompt lookup: drafts come from the text, and change nothing but the time: every token is the same as without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model.decoder import Decoder
from bitnet_cli.model.generate import Plan, Timings, generate
from bitnet_cli.model.lookup import Lookup
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.model.session import Session

Make = Callable[..., Decoder]
PROMPT = [5, 900, 17, 44, 1201, 80, 5, 900, 17, 44, 1201, 80, 33, 5, 900, 17]


def lookup_of(ids: list[int], most: int = 8) -> Lookup:
    lookup = Lookup(most)
    lookup.extend(ids)
    return lookup


def test_drafts() -> None:
    assert lookup_of([1, 2, 3, 4]).draft(9) == []
    assert lookup_of([1, 2, 3, 4, 1, 2]).draft(9) == [3, 4]
    assert lookup_of([1, 2, 3, 4, 1, 2]).draft(1) == [3]
    assert lookup_of([1, 2, 3, 4, 1, 2]).draft(0) == []
    assert lookup_of([7, 2, 3, 4, 7, 2, 5, 6, 7, 2]).draft(9) == [5, 6]  # the last time
    assert lookup_of([1, 7, 2, 3, 9, 7, 2, 5, 1, 7, 2]).draft(9) == [3, 9]  # three tokens agree there
    assert lookup_of([1, 1, 1, 1]).draft(9) == [1]
    assert lookup_of([3]).draft(9) == lookup_of([]).draft(9) == []


def test_the_size_of_drafts_follows_how_they_do() -> None:
    lookup = lookup_of([*range(40), *range(4)], most=8)
    sizes = []
    for right in (2, 4, 8, 8, 0, 0, 0, 1):
        sizes.append(len(lookup.draft(100)))
        lookup.learn(sizes[-1], min(right, sizes[-1]))
    assert sizes == [2, 4, 8, 8, 8, 4, 2, 1]


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8", "q4", "q3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_gives_the_bits_of_single_tokens(decoder_of: Make, cache_type: str, threads: int) -> None:
    """Of every row, all logits and the largest ones, and what the cache holds then. Batches of sizes that fill four queries and do not."""
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 4000, 40)]
    one, many = (decoder_of(EMBEDDED_MODEL, context=64, cache_type=cache_type, threads=threads) for _ in range(2))
    start = 0
    for size in (1, 2, 3, 5, 8, 1, 4, 16):
        batch = ids[start : start + size]
        many.feed_batch(batch)
        for row, token in enumerate(batch):
            assert np.array_equal(many.logits_of(row), one.feed([token]))
        start += size
    assert np.array_equal(many.feed([7]), one.feed([7]))
    with pytest.raises(ValueError, match="row 3"):
        many.logits_of(3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.0, repeat_penalty=1.3, frequency_penalty=0.1),
        Sampling(seed=3),
        Sampling(temperature=1.5, seed=4, presence_penalty=0.2),
        Sampling(temperature=0.7, mirostat=2, mirostat_tau=2.0, seed=6),
    ],
    ids=str,
)
def test_the_same_tokens_as_without(decoder_of: Make, sampling: Sampling, threads: int) -> None:
    session = Session(decoder_of(EMBEDDED_MODEL, threads=threads, cache_type="f16"))

    def text(draft: int) -> tuple[list[int], Timings]:
        session.emptied()
        timings = Timings()
        return list(generate(session, PROMPT, Sampler(sampling), Plan(120, draft=draft), timings)), timings

    (expected, without), (found, t) = text(0), text(6)
    assert found == expected
    assert session.ids == PROMPT + found[:-1]
    assert (without.drafted_tokens, t.new_tokens) == (0, 120)
    assert t.drafted_tokens > 0
    if sampling == Sampling(temperature=0.0):
        assert t.accepted_tokens > 10  # greedy text of a small model goes in circles


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 30, -1])
def test_limits(decoder_of: Make, limit: int) -> None:
    """Drafts never go past the limit or the end of the context."""
    session = Session(decoder_of(EMBEDDED_MODEL, context=64))
    expected = list(generate(session, PROMPT, Sampler(Sampling(temperature=0)), Plan(limit)))
    found = list(generate(session, PROMPT, Sampler(Sampling(temperature=0)), Plan(limit, draft=20)))
    assert found == expected
    assert len(found) == (limit if limit >= 0 else 64 - len(PROMPT) + 1)


def test_a_token_that_ends_the_text_in_a_draft(decoder_of: Make) -> None:
    session = Session(decoder_of(EMBEDDED_MODEL))
    greedy: Any = Sampling(temperature=0.0)
    tokens = list(generate(session, PROMPT, Sampler(greedy), Plan(100)))
    end = tokens[60]
    expected = tokens[: tokens.index(end)]
    timings = Timings()
    assert list(generate(session, PROMPT, Sampler(greedy), Plan(100, ends=[end], draft=8), timings)) == expected
    assert timings.finish == "stop"
    assert session.ids == PROMPT + expected


def test_a_reader_who_leaves(small_file: Path, decoder_of: Make) -> None:
    """What was drafted and not asked for is cut off, and the session goes on."""
    session = Session(decoder_of(small_file))
    prompt = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    tokens = generate(session, prompt, Sampler(Sampling(temperature=0)), Plan(40, draft=8))
    some = [next(tokens) for _ in range(5)]
    tokens.close()  # type: ignore[attr-defined]
    assert session.ids == (prompt + some)[: len(session.ids)]
    assert list(generate(session, prompt, Sampler(Sampling(temperature=0)), Plan(5))) == some
