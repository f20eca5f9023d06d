"""The generate loop over an engine that gives the logits it is told to: when it stops, what it feeds, what it counts."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.errors import UsageError
from bitnet_cli.model.generate import TextPlan, Timings, generate
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler

from .fake_engine import FakeEngine

GREEDY = Sampling(temperature=0.0)


def after(ids: Sequence[int]) -> NDArray[np.float32]:
    """The likeliest token after token t is t + 1, then t + 2."""
    logits = np.zeros(200, np.float32)
    logits[ids[-1] + 1], logits[ids[-1] + 2] = 1.0, 0.5
    return logits


def queue(engine: FakeEngine) -> Scheduler:
    return Scheduler(engine)  # type: ignore[arg-type]


def run(prompt: list[int], limit: int, stop: tuple[int, ...] = (), **options: Any) -> tuple[list[int], FakeEngine, Timings]:
    engine, timings = FakeEngine(after, **options), Timings()
    new = list(generate(queue(engine), prompt, Sampler(GREEDY), TextPlan(limit, stop), timings))
    return new, engine, timings


def test_the_limit() -> None:
    new, engine, t = run([5, 6], 4)
    assert new == [7, 8, 9, 10]
    assert engine.fed == [[5, 6], [7], [8], [9]]  # nobody asks what follows the last one
    assert (t.prompt_tokens, t.new_tokens, t.finish) == (2, 4, "length")


def test_no_tokens_wanted() -> None:
    new, engine, t = run([5, 6], 0)
    assert (new, engine.fed) == ([], [[5, 6]])
    assert (t.prompt_tokens, t.new_tokens, t.finish) == (2, 0, "length")


def test_one_token_costs_no_decode() -> None:
    new, engine, t = run([5], 1)
    assert (new, engine.fed, t.decode_seconds, t.decode_rate) == ([6], [[5]], 0.0, 0.0)


@pytest.mark.parametrize("limit", [-1, 50])
def test_a_stop_token_ends_the_text_and_is_not_in_it(limit: int) -> None:
    new, engine, t = run([5], limit, stop=(9, 150))
    assert new == [6, 7, 8]
    assert engine.fed[-1] == [8]
    assert (t.new_tokens, t.finish) == (3, "stop")


def test_a_stop_token_at_once() -> None:
    new, _, t = run([5], 10, stop=(6,))
    assert (new, t.new_tokens, t.finish) == ([], 0, "stop")


def test_a_stop_token_in_the_prompt_stops_nothing() -> None:
    assert run([9, 5], 2, stop=(9,))[0] == [6, 7]


@pytest.mark.parametrize("limit", [-1, 1000])
def test_until_the_context_is_full(limit: int) -> None:
    """The last token needs no place in the context: nothing is asked after it."""
    new, engine, t = run([5, 6, 7], limit, context=10)
    assert len(new) == 8
    assert engine.fed[0] == [5, 6, 7] and len(engine.fed) == 8
    assert (t.new_tokens, t.finish) == (8, "length")


def test_a_prompt_that_fills_the_context() -> None:
    new, engine, _ = run([5, 6, 7], -1, context=3)
    assert (new, engine.fed) == ([8], [[5, 6, 7]])


@pytest.mark.parametrize("prompt", [[], [1, 2, 3, 4], [200], [-1]])
def test_a_prompt_that_cannot_be_fed(prompt: list[int]) -> None:
    with pytest.raises(UsageError, match=r"no tokens|do not fit|must be 0 to 199"):
        run(prompt, 5, context=3)


def test_tokens_come_one_at_a_time() -> None:
    """A reader who stops has paid for no more tokens than it saw."""
    engine = FakeEngine(after)
    tokens = generate(queue(engine), [1], Sampler(GREEDY), TextPlan(-1))
    assert [next(tokens), next(tokens)] == [2, 3]
    assert engine.fed == [[1], [2]]
    tokens.close()
    assert engine.fed == [[1], [2]]


def test_the_prompt_counts_for_the_repeat_penalty() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repeat_penalty=50.0))
    new = list(generate(queue(FakeEngine(after)), [7, 6], sampler, TextPlan(1)))
    assert new == [8]  # 7 is likelier after 6, but it stands in the prompt


def test_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves only inside `feed`: 2 s for the prompt of two tokens, 1 s for each of three decode steps, none for the reader."""
    now = 0.0

    def tick(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    engine, t = FakeEngine(after, tick=tick), Timings()
    for _ in generate(queue(engine), [5, 6], Sampler(GREEDY), TextPlan(4), t):
        tick(100)
    assert (t.prefill_seconds, t.decode_seconds) == (2.0, 3.0)
    assert (t.prefill_rate, t.decode_rate) == (1.0, 1.0)


def test_rates_without_time() -> None:
    assert (Timings().prefill_rate, Timings().decode_rate) == (0.0, 0.0)
    assert Timings(new_tokens=5).decode_rate == 0.0


def test_the_engine_is_told_how_long_the_text_may_be() -> None:
    assert run([7], 3)[1].expected == [3]
    assert run([7], -1)[1].expected == [None]
