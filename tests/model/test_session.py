"""A session computes only what its cache does not hold, and gives the same logits as a decoder that computes everything."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.errors import UsageError
from bitnet_cli.model.decoder import CHUNK, Decoder
from bitnet_cli.model.generate import Plan, Timings, generate
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.model.session import Session, common_prefix

TEXT = [7, 100, 9, 33, 41, 200, 5, 5, 18, 77]


@pytest.fixture
def session(small_file: Path, decoder_of: Callable[..., Decoder]) -> Session:
    return Session(decoder_of(small_file))


@pytest.fixture
def fresh(small_file: Path, decoder_of: Callable[..., Decoder]) -> Callable[[list[int]], NDArray[np.float32]]:
    """Logits of the last of the ids, by a decoder that starts from nothing."""
    decoder = decoder_of(small_file)

    def logits(ids: list[int]) -> NDArray[np.float32]:
        decoder.rewind(0)
        return decoder.feed(ids).copy()

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
def test_only_what_is_new_is_computed(session: Session, fresh: Callable[..., NDArray[np.float32]], ids: list[int], fed: int) -> None:
    session.prefill(TEXT)
    logits, count = session.prefill(ids)
    assert count == fed
    assert session.ids == ids
    assert session.position == len(ids)
    assert np.array_equal(logits, fresh(ids))


def test_what_was_generated_is_not_computed_again(session: Session) -> None:
    """Two turns of a conversation: the second feeds what the user adds and the last new token, which nobody had fed."""
    greedy, first, second = Sampling(temperature=0.0), Timings(), Timings()
    new = list(generate(session, TEXT, Sampler(greedy), Plan(6), first))
    assert (first.prompt_tokens, first.cached_tokens, first.fed_tokens) == (10, 0, 10)
    assert session.ids == TEXT + new[:-1]
    prompt = [*TEXT, *new, 50, 51, 52]
    again = list(generate(session, prompt, Sampler(greedy), Plan(6), second))
    assert (second.prompt_tokens, second.cached_tokens, second.fed_tokens) == (19, 15, 4)
    session.emptied()
    assert again == list(generate(session, prompt, Sampler(greedy), Plan(6)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError])
def test_stopped_in_the_middle(long_file: Path, decoder_of: Callable[..., Decoder], error: type[BaseException]) -> None:
    """What was computed stays: whole chunks. The next call goes on behind them."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 200, 2 * CHUNK + 30)]
    session = Session(decoder_of(long_file))

    def stop(done: int, total: int) -> None:
        assert total == len(ids)
        if done == 2 * CHUNK:
            raise error

    with pytest.raises(error):
        session.prefill(ids, progress=stop)
    assert session.ids == ids[: 2 * CHUNK]
    logits, fed = session.prefill(ids)
    assert fed == 30
    assert np.array_equal(logits, decoder_of(long_file).feed(ids))


def test_stopped_between_two_lines(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes before the decoder has counted anything."""
    session.prefill(TEXT[:3])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.decoder, "_layers", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        session.prefill(TEXT)
    assert session.ids == TEXT[:3]
    assert session.prefill(TEXT).fed == len(TEXT) - 3


@pytest.mark.parametrize("ids", [[], [*TEXT, 260], [1] * 65])
def test_what_cannot_be_fed(session: Session, ids: list[int]) -> None:
    session.prefill(TEXT)
    with pytest.raises(UsageError):
        session.prefill(ids)
    assert session.ids == TEXT[: common_prefix(TEXT, ids)]
    assert session.prefill(TEXT).fed == max(len(TEXT) - len(session.ids), 1) or session.ids == TEXT


def test_progress_counts_new_tokens(session: Session) -> None:
    seen: list[tuple[int, int]] = []
    session.prefill(TEXT)
    session.prefill([*TEXT, 1, 2, 3], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]


def test_other_work_in_between(session: Session, fresh: Callable[..., NDArray[np.float32]]) -> None:
    """The cache holds another text afterwards, even one that is longer than what the session held."""
    session.prefill(TEXT)
    session.emptied().feed([9] * 30)
    assert session.ids == []
    logits, fed = session.prefill(TEXT)
    assert fed == len(TEXT)
    assert np.array_equal(logits, fresh(TEXT))


def test_the_ids_are_a_copy(session: Session) -> None:
    session.prefill(TEXT)
    session.ids.append(3)
    assert session.ids == TEXT
