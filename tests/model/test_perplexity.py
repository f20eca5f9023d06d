"""Perplexity against its definition, on an engine whose logits depend on what it has seen."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from bitnet_kernels.arrays import NO_ROWS
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.logprobs import target_logprobs
from bitnet_cli.model.perplexity import score, score_like_llama_cpp
from bitnet_cli.model.scheduler import Scheduler

from .fake_engine import FakeEngine


def queue(bad: bool = False) -> Scheduler:
    """Vocabulary of 7; the logits of a token grow with how many tokens came before it in its window."""

    def after(ids: Sequence[int]) -> NDArray[np.float32]:
        logits = logits_after(len(ids) - 1, ids[-1])
        if bad and len(ids) == 8:
            logits[0] = np.nan
        return logits

    return Scheduler(FakeEngine(after, context=8, vocab=7))  # type: ignore[arg-type]


def logits_after(history: int, token: int) -> NDArray[np.float32]:
    return np.cos(np.arange(7, dtype=np.float32) * (token + 1)) * np.float32(1 + history)


def nat(history: int, token: int, target: int) -> float:
    weights = [math.exp(float(v)) for v in logits_after(history, token)]
    return -math.log(weights[target] / sum(weights))


IDS = [int(i) for i in np.random.default_rng(1).integers(0, 7, 30)]


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (5, 5), (1, 1)])
def test_every_token_is_scored_once_with_its_history(context: int, stride: int) -> None:
    """Token t belongs to the window that begins at the multiple of stride below t; that window reaches context - stride further back."""
    expected = []
    for t in range(1, len(IDS)):
        begin = (t - 1) // stride * stride
        first = max(0, begin - (context - stride))
        expected.append(nat(t - 1 - first, IDS[t - 1], IDS[t]))
    result = score(queue(), IDS, context, stride)
    assert result.tokens == len(IDS) - 1
    assert result.nats == pytest.approx(np.mean(expected), rel=1e-6)
    assert result.nats_error == pytest.approx(np.std(expected, ddof=1) / math.sqrt(len(expected)), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-6)
    assert result.error == pytest.approx(result.perplexity * result.nats_error)


@pytest.mark.parametrize(("context", "bos"), [(8, None), (8, 3), (5, 3)])
def test_as_llama_perplexity(context: int, bos: int | None) -> None:
    """Whole windows only, each begun anew with the begin token in place of its first; of each, what follows its middle."""
    expected = []
    for begin in range(0, len(IDS) // context * context, context):
        window = IDS[begin : begin + context]
        window[0] = window[0] if bos is None else bos
        expected += [nat(t - 1, window[t - 1], window[t]) for t in range(context // 2 + 1, context)]
    result = score_like_llama_cpp(queue(), IDS, context, bos)
    assert result.tokens == len(expected) == len(IDS) // context * (context - context // 2 - 1)
    assert result.nats == pytest.approx(np.mean(expected), rel=1e-6)
    assert result.nats_error == pytest.approx(np.std(expected, ddof=1) / math.sqrt(len(expected)), rel=1e-5)
    with pytest.raises(UsageError, match="two windows"):
        score_like_llama_cpp(queue(), IDS[:15], 8, bos)


def test_one_token_has_no_error() -> None:
    result = score(queue(), IDS[:2], 8, 8)
    assert (result.tokens, result.nats) == (1, pytest.approx(nat(0, IDS[0], IDS[1]), rel=1e-6))
    assert math.isnan(result.error)


def test_progress_ends_at_the_end() -> None:
    seen: list[tuple[int, int]] = []
    score(queue(), IDS, 8, 8, lambda done, total: seen.append((done, total)))
    assert seen == [(8, 29), (16, 29), (24, 29), (29, 29)]


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]], np.float32)
    found, largest = target_logprobs(logits, [0, 2], NO_ROWS)
    assert found.tolist() == [0.0, -2e4] and largest.tolist() == [True, False]
    found, largest = target_logprobs(logits[:1], [1], np.array([0]))  # without the first one's share
    assert found == pytest.approx([0.0], abs=1e-6) and largest.tolist() == [True]


def test_logprobs_to_seven_digits() -> None:
    logits = np.random.default_rng(2).normal(0, 4, (5, 30000)).astype(np.float32)
    exact = logits.astype(np.float64)
    expected = exact[range(5), range(5)] - np.log(np.exp(exact).sum(1))
    assert target_logprobs(logits, list(range(5)), NO_ROWS)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("context", "stride"), [(9, 4), (8, 9), (8, 0), (4, 5)])
def test_windows_that_do_not_fit(context: int, stride: int) -> None:
    with pytest.raises(UsageError, match=f"stride {stride} and context {context}"):
        score(queue(), IDS, context, stride)


def test_too_short() -> None:
    with pytest.raises(UsageError, match="at least two tokens"):
        score(queue(), [3], 8, 8)


def test_logits_that_are_not_finite() -> None:
    with pytest.raises(BitnetError, match="not finite, in tokens 0 to 8"):
        score(queue(bad=True), IDS, 8, 8)
