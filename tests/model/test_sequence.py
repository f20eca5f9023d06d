"""A text computes only what no text before it has computed, and gets the same logits as from an engine that computes everything."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.errors import UsageError
from bitnet_cli.model.engine import CHUNK_TOKENS, Engine
from bitnet_cli.model.generate import TextPlan, Timings, generate
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence

from .held import held, prefill

TEXT = [7, 100, 9, 33, 41, 200, 5, 5, 18, 77]


@pytest.fixture
def engine(small_file: Path, text_of: Callable[..., Sequence]) -> Engine:
    return text_of(small_file).engine


@pytest.fixture
def fresh(small_file: Path, text_of: Callable[..., Sequence]) -> Callable[[list[int]], NDArray[np.float32]]:
    """Logits of the last of the ids, by an engine that starts from nothing."""
    text = text_of(small_file)

    def logits(ids: list[int]) -> NDArray[np.float32]:
        text.rewind(0)
        return text.feed(ids).copy()

    return logits


@pytest.mark.parametrize(
    ("ids", "fed"),
    [
        (TEXT, 1),  # all of it is there; the last token is fed for its logits
        ([*TEXT, 3, 4], 2),
        (TEXT[:4], 1),
        ([*TEXT[:4], 90, 91, 92], 3),
        ([1, *TEXT], len(TEXT) + 1),
        ([7], 1),
    ],
)
def test_only_what_is_new_is_computed(engine: Engine, fresh: Callable[..., NDArray[np.float32]], ids: list[int], fed: int) -> None:
    prefill(engine, TEXT)
    logits, count = prefill(engine, ids)
    assert count == fed
    assert np.array_equal(logits, fresh(ids))
    assert prefill(engine, ids)[1] == 1


def test_what_was_generated_is_not_computed_again(engine: Engine) -> None:
    """Two turns of a conversation: the second feeds what the user adds and the last new token, which nobody had fed."""
    greedy, first, second, scheduler = Sampling(temperature=0.0), Timings(), Timings(), Scheduler(engine)
    new = list(generate(scheduler, TEXT, Sampler(greedy), TextPlan(6), first))
    assert (first.prompt_tokens, first.cached_tokens, first.fed_tokens) == (10, 0, 10)
    assert held(engine) == TEXT + new[:-1]
    prompt = [*TEXT, *new, 50, 51, 52]
    again = list(generate(scheduler, prompt, Sampler(greedy), TextPlan(6), second))
    assert (second.prompt_tokens, second.cached_tokens, second.fed_tokens) == (19, 15, 4)
    engine.pages.forget()
    assert held(engine) == []
    assert again == list(generate(scheduler, prompt, Sampler(greedy), TextPlan(6)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError])
def test_stopped_in_the_middle(long_file: Path, text_of: Callable[..., Sequence], error: type[BaseException]) -> None:
    """What was computed stays: whole chunks. The next text goes on behind them."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 200, 2 * CHUNK_TOKENS + 30)]
    engine = text_of(long_file).engine

    def stop(done: int, total: int) -> None:
        assert total == len(ids)
        if done == 2 * CHUNK_TOKENS:
            raise error

    with pytest.raises(error):
        list(generate(Scheduler(engine), ids, Sampler(Sampling()), TextPlan(1, progress=stop)))
    assert held(engine) == ids[: 2 * CHUNK_TOKENS]
    logits, fed = prefill(engine, ids)
    assert fed == 30
    assert np.array_equal(logits, text_of(long_file).feed(ids))


def test_stopped_between_two_lines(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes before the engine has counted anything."""
    prefill(engine, TEXT[:3])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.team, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        prefill(engine, TEXT)
    assert held(engine) == TEXT[:3]
    assert prefill(engine, TEXT)[1] == len(TEXT) - 3


@pytest.mark.parametrize("ids", [[], [*TEXT, 260], [1] * 65])
def test_what_cannot_be_fed(engine: Engine, ids: list[int]) -> None:
    prefill(engine, TEXT)
    with pytest.raises(UsageError):
        list(generate(Scheduler(engine), ids, Sampler(Sampling()), TextPlan(1)))
    assert prefill(engine, TEXT)[1] == 1


def test_progress_counts_new_tokens(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    prefill(engine, TEXT)
    plan = TextPlan(2, progress=lambda done, total: seen.append((done, total)))
    list(generate(Scheduler(engine), [*TEXT, 1, 2, 3], Sampler(Sampling()), plan))
    assert seen == [(3, 3)]


def test_other_work_in_between(engine: Engine, fresh: Callable[..., NDArray[np.float32]]) -> None:
    """The cache holds another text afterwards, longer than what it held before."""
    prefill(engine, TEXT)
    prefill(engine, [9] * 30)
    logits, _ = prefill(engine, TEXT)
    assert np.array_equal(logits, fresh(TEXT))
