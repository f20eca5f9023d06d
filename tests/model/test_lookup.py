"""Prompt lookup: drafts come from the text, and change nothing but the time: every token is the same as without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model import lookup as module
from bitnet_cli.model.engine import Row
from bitnet_cli.model.generate import TextPlan, Timings, generate
from bitnet_cli.model.lookup import Lookup
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence

from .held import held

Make = Callable[..., Sequence]
PROMPT = [5, 900, 17, 44, 1201, 80, 5, 900, 17, 44, 1201, 80, 33, 5, 900, 17]


def lookup_of(ids: list[int], most: int = 8) -> Lookup:
    lookup = Lookup(most)
    lookup.extend(ids)
    return lookup


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts whether they pay or not: what they cost depends on the machine."""
    monkeypatch.setattr(module, "GAIN", 0.0)


@pytest.mark.usefixtures("always")
def test_drafts() -> None:
    """Right ones so far, so that the longest promises most."""

    def draft(ids: list[int], room: int = 9) -> list[int]:
        lookup = lookup_of(ids)
        lookup._right = 1.0
        return list(lookup.draft(room))

    assert draft([1, 2, 3, 4]) == []
    assert draft([1, 2, 3, 4, 1, 2]) == [3, 4, 1, 2]
    assert draft([1, 2, 3, 4, 1, 2], 1) == [3]
    assert draft([1, 2, 3, 4, 1, 2], 0) == []
    assert draft([7, 2, 3, 4, 7, 2, 5, 6, 7, 2]) == [5, 6, 7, 2]  # the last time
    assert draft([1, 7, 2, 3, 9, 7, 2, 5, 1, 7, 2]) == [3, 9, 7, 2, 5, 1, 7, 2]  # three tokens agree there
    assert draft([1, 1, 1, 1]) == [1]
    assert draft([3]) == draft([]) == []
    assert len(draft([*range(40), *range(4)], 100)) == 8


def priced(step: dict[int, float], right: float) -> Lookup:
    """In a text that goes in circles, with steps that cost so much, where a single one takes a second."""
    lookup = lookup_of([*range(100), *range(20)], most=64)
    lookup._right = right
    lookup.took(1.0)
    for tokens, seconds in step.items():
        lookup.took(seconds, tokens)
    return lookup


def test_a_draft_is_as_long_as_it_pays() -> None:
    cheap, dear = {5: 1.2, 17: 1.5, 65: 2.0}, {5: 7.0, 17: 14.0, 65: 60.0}
    assert len(priced(cheap, 1.0).draft(100)) == 64
    assert 2 <= len(priced(cheap, 0.7).draft(100)) <= 16
    assert priced(cheap, 0.05).draft(100) == []
    assert priced(dear, 0.9).draft(100) == []
    assert priced({}, 0.9).draft(100) != []  # nobody has measured yet: try
    assert priced({5: 9.0}, 0.9).draft(100) == []  # and do not try again


def test_guesses_are_judged_without_being_computed() -> None:
    right, wrong = lookup_of([*range(30)]), lookup_of([*range(30)])
    right.extend(range(20))
    wrong.extend(i for n in range(10) for i in (3 * n, 3 * n + 1, 99))
    assert right._right > 0.9
    assert wrong._right < 0.2


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8", "q4", "q3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_gives_the_bits_of_single_tokens(text_of: Make, cache_type: str, threads: int) -> None:
    """Of every row, all logits and the largest ones, and what the cache holds then. Batches of sizes that fill four queries and do not."""
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 4000, 40)]
    one, many = (text_of(EMBEDDED_MODEL, context=64, cache_type=cache_type, threads=threads) for _ in range(2))
    start = 0
    for size in (1, 2, 3, 5, 8, 1, 4, 16):
        batch = ids[start : start + size]
        (logits,) = many.engine.step([Row(many, batch, range(size), top=5)])
        for row, token in enumerate(batch):
            expected = one.feed([token])
            found = logits[row].copy()
            largest = np.argsort(-expected)[:5]
            assert np.array_equal(found[largest], expected[largest]) and np.isin(found, [*expected, -np.inf]).all()
            others = logits[row + 1 :].copy()
            assert np.array_equal(many.engine.all_logits(row, row), expected)
            assert np.array_equal(logits[row], expected) and np.array_equal(logits[row + 1 :], others)
        many.rewind(many.position - size)
        assert np.array_equal(many.feed_all(batch)[-1], expected)
        start += size
    assert np.array_equal(many.feed([7]), one.feed([7]))


@pytest.mark.usefixtures("always")
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
def test_the_same_tokens_as_without(text_of: Make, sampling: Sampling, threads: int) -> None:
    scheduler = Scheduler(text_of(EMBEDDED_MODEL, threads=threads, cache_type="f16").engine)

    def text(draft: int) -> tuple[list[int], Timings]:
        scheduler.engine.pages.forget()
        timings = Timings()
        return list(generate(scheduler, PROMPT, Sampler(sampling), TextPlan(120, draft=draft), timings)), timings

    (expected, without), (found, t) = text(0), text(6)
    assert found == expected
    assert held(scheduler.engine) == PROMPT + found[:-1]
    assert (without.drafted_tokens, t.new_tokens) == (0, 120)
    assert t.drafted_tokens > 0
    if sampling == Sampling(temperature=0.0):
        assert t.accepted_tokens > 10  # greedy text of a small model goes in circles


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("limit", [0, 1, 2, 7, 30, -1])
def test_limits(text_of: Make, limit: int) -> None:
    """Drafts never go past the limit or the end of the context."""
    scheduler = Scheduler(text_of(EMBEDDED_MODEL, context=64).engine)
    expected = list(generate(scheduler, PROMPT, Sampler(Sampling(temperature=0)), TextPlan(limit)))
    found = list(generate(scheduler, PROMPT, Sampler(Sampling(temperature=0)), TextPlan(limit, draft=20)))
    assert found == expected
    assert len(found) == (limit if limit >= 0 else 64 - len(PROMPT) + 1)


@pytest.mark.usefixtures("always")
def test_a_token_that_ends_the_text_in_a_draft(text_of: Make) -> None:
    scheduler = Scheduler(text_of(EMBEDDED_MODEL).engine)
    greedy: Any = Sampling(temperature=0.0)
    tokens = list(generate(scheduler, PROMPT, Sampler(greedy), TextPlan(100)))
    end = tokens[60]
    expected = tokens[: tokens.index(end)]
    timings = Timings()
    scheduler.engine.pages.forget()
    assert list(generate(scheduler, PROMPT, Sampler(greedy), TextPlan(100, ends=[end], draft=8), timings)) == expected
    assert timings.finish == "stop"
    assert held(scheduler.engine) == PROMPT + expected


@pytest.mark.usefixtures("always")
def test_a_reader_who_leaves(small_file: Path, text_of: Make) -> None:
    """What was drafted and not asked for is cut off, and the engine goes on."""
    scheduler = Scheduler(text_of(small_file).engine)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    tokens = generate(scheduler, prompt, Sampler(Sampling(temperature=0)), TextPlan(40, draft=8))
    some = [next(tokens) for _ in range(5)]
    tokens.close()  # type: ignore[attr-defined]
    computed = held(scheduler.engine)
    assert computed == (prompt + some)[: len(computed)]
    assert list(generate(scheduler, prompt, Sampler(Sampling(temperature=0)), TextPlan(5))) == some
