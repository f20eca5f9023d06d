"""Completions: text in pieces, stop strings, log-probabilities, and what ends a text."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model.completion import Request, complete
from bitnet_cli.model.logprobs import token_logprob
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling

from .held import prefill

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenModel]:
    model = open_model(EMBEDDED_MODEL, Options(threads=1))
    yield model
    model.scheduler.close()


@pytest.fixture(scope="module")
def prompt(opened: OpenModel) -> list[int]:
    return opened.tokenizer.encode("And the king said")


@pytest.fixture(scope="module")
def text(opened: OpenModel, prompt: list[int]) -> str:
    return "".join(complete(opened, prompt, GREEDY, Request(60)))


@pytest.mark.parametrize(("first", "last"), [(9, 12), (20, 21), (31, 50)])
def test_stop_strings(opened: OpenModel, prompt: list[int], text: str, first: int, last: int) -> None:
    """Wherever it begins in a token and however many tokens it takes, nothing of it is in the text."""
    stop = text[first:last]
    completion = complete(opened, prompt, GREEDY, Request(60, stop=["not in the text", stop]))
    pieces = list(completion)
    assert "".join(pieces) == text[: text.index(stop)]
    assert (completion.stopped_by, completion.finish) == (stop, "stop")
    assert opened.tokenizer.decode(completion.ids, at_start=False).startswith("".join(pieces) + stop)


def test_the_beginning_of_a_stop_string_at_the_end_is_shown(opened: OpenModel, prompt: list[int], text: str) -> None:
    completion = complete(opened, prompt, GREEDY, Request(60, stop=[text[-5:] + "\0"]))
    assert "".join(completion) == text
    assert (completion.stopped_by, completion.finish) == (None, "length")


def test_tokens_that_end_a_text(opened: OpenModel, prompt: list[int]) -> None:
    whole = complete(opened, prompt, GREEDY, Request(20))
    list(whole)
    end = whole.ids[5]
    ended = complete(opened, prompt, GREEDY, Request(20, ends=[end]))
    list(ended)
    assert ended.ids == whole.ids[: whole.ids.index(end)]
    ignored = complete(opened, prompt, GREEDY, Request(20, ends=[end], ignore_eos=True))
    list(ignored)
    assert len(ignored.ids) == 20
    assert end not in ignored.ids
    assert ignored.ids[: len(ended.ids)] == ended.ids


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=4)])
@pytest.mark.parametrize("draft", [0, 6])
def test_logprobs(opened: OpenModel, prompt: list[int], sampling: Sampling, draft: int) -> None:
    """They are of the model, whatever the sampler does, and asking for them changes no token."""
    plain = complete(opened, prompt, sampling, Request(12))
    told = complete(opened, prompt, sampling, Request(12, logprobs=3, draft=draft))
    assert list(plain) == list(told)
    assert [one.id for one in told.logprobs] == told.ids == plain.ids
    for count, one in enumerate(told.logprobs):
        logits = prefill(opened.engine, prompt + told.ids[:count])[0].astype(np.float64)
        expected = logits - math.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert one.logprob == pytest.approx(expected[one.id], abs=1e-9)
        assert [token for token, _ in one.top] == np.argsort(-expected, kind="stable")[:3].tolist()


def test_logprobs_of_few_and_equal_tokens() -> None:
    one = token_logprob(np.zeros(4, np.float32), 2, 10)
    assert [token for token, _ in one.top] == [0, 1, 2, 3]
    assert one.logprob == pytest.approx(math.log(0.25))
    assert token_logprob(np.array([1e30, -1e30], np.float32), 0, 0).top == ()
