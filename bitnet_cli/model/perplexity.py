"""Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

In: token ids and a scheduler. Out: `Score`. The text is cut into windows of `context` tokens that advance by `stride`; a window scores the
`stride` tokens after those that an earlier window scored, so every token but the first is scored once. With stride = context the windows
share nothing (fast, and pessimistic for each window's first tokens); a smaller stride gives every token at least context - stride
tokens of history.

Probabilities are of the tokens that there are. Rows of the head that stand for none (Engine.silent) are left out, as they are where a
text is written; a trained model has next to nothing there, so that other programs, which count them, differ in no digit that is printed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from bitnet_kernels.arrays import NO_ROWS
from bitnet_kernels.elementary import exp
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.logprobs import target_logprobs
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.scheduler import Scheduler


@dataclass(frozen=True)
class Score:
    """nats: mean negative log-likelihood of a token; nats_error: its standard error, tokens taken as independent; NaN for one token."""

    nats: float
    nats_error: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return float(exp(np.array([min(self.nats, 709.0)]))[0])

    @property
    def error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nats_error


def score(
    scheduler: Scheduler,
    ids: Sequence[int],
    context: int,
    stride: int,
    progress: Callable[[int, int], None] | None = None,
    silent: NDArray[np.int64] = NO_ROWS,
) -> Score:
    """Score `ids`. progress(done, all) is called after every window. silent: ids that have no share of probability (Engine.silent).

    UsageError: too few tokens, one that is never chosen, or context and stride do not fit.
    """
    most = scheduler.engine.context
    if not 1 <= stride <= context <= most:
        raise UsageError(f"stride {stride} and context {context} must satisfy 1 <= stride <= context <= {most}")
    if len(ids) < 2:
        raise UsageError("perplexity needs a text of at least two tokens")
    if len(silent) and np.isin(ids[1:], silent).any():
        token = ids[1 + int(np.isin(ids[1:], silent).argmax())]
        raise UsageError(f"token {token} is unused: the model never writes it, so that a text with it has no perplexity")
    nats: list[NDArray[np.float64]] = []
    last = len(ids) - 1  # the last token is only a target
    for begin in range(0, last, stride):
        end = min(begin + stride, last)
        first = max(0, begin - (context - stride))
        nats.append(_window(scheduler, ids[first : end + 1], begin - first, silent, begin))
        if progress:
            progress(end, last)
    return _score(nats)


def score_like_llama_cpp(
    scheduler: Scheduler, ids: Sequence[int], context: int, bos: int | None, progress: Callable[[int, int], None] | None = None
) -> Score:
    """What llama-perplexity computes (llama.cpp, tools/perplexity/perplexity.cpp, `perplexity` and `process_logits`).

    Windows of `context` tokens that share nothing, the begin token in the place of each one's first (bos; None: a model without one), and
    of each only the tokens after the middle; what is left over at the end is not scored. Probabilities are of all rows of the head.
    UsageError: fewer than two windows.
    """
    most = scheduler.engine.context
    if not 4 <= context <= most:
        raise UsageError(f"context {context} must be 4 to {most}")
    if len(ids) < 2 * context:
        raise UsageError(
            f"llama-perplexity wants at least two windows: {2 * context} tokens, and the text has {len(ids)}; -c makes them smaller"
        )
    nats, count = [], len(ids) // context
    for number in range(count):
        window = list(ids[number * context : (number + 1) * context])
        if bos is not None:
            window[0] = bos
        nats.append(_window(scheduler, window, context // 2, NO_ROWS, number * context))
        if progress:
            progress(number + 1, count)
    return _score(nats)


def _window(scheduler: Scheduler, ids: Sequence[int], first: int, silent: NDArray[np.int64], begin: int) -> NDArray[np.float64]:
    """Of each of ids[first + 1 :], given all before it. begin: where the window begins in the text, for errors."""
    nats: list[NDArray[np.float64]] = []

    def use(number: int, logits: NDArray[np.float32]) -> None:
        nats.append(-target_logprobs(logits, ids[number + 1 : number + 1 + len(logits)], silent)[0])

    scheduler.finish([Reading(ids[:-1], use, first)])
    if not all(np.isfinite(part).all() for part in nats):
        raise BitnetError(f"the model produced logits that are not finite, in tokens {begin} to {begin + len(ids) - 1}")
    return np.concatenate(nats)


def _score(nats: Sequence[NDArray[np.float64]]) -> Score:
    found = np.concatenate(nats)
    mean, count = found.mean(), len(found)
    squares = float(np.square(found - mean).sum())
    return Score(float(mean), math.sqrt(squares / (count - 1) / count) if count > 1 else math.nan, count)
