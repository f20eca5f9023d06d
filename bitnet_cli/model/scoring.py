"""How likely a model finds given texts after given contexts: log-probabilities of their tokens, without a matrix of all logits.

Probabilities are of the tokens that there are, as where text is written (Engine.silent).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.perplexity import token_nats
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.scheduler import Job, Scheduler

ROWS = 16  # of which float64 copies are made at once


class Scored(NamedTuple):
    """logprobs: (tokens,) float64, of each token of the text, natural logarithms; greedy: whether each was the likeliest."""

    logprobs: NDArray[np.float64]
    greedy: bool


def score_texts(
    scheduler: Scheduler, texts: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Callable[[int, int], None] | None = None
) -> list[Scored]:
    """Score the second of each (context, text), both token ids. progress(done, all): texts.

    UsageError: a context without tokens, or more than the model's context holds. BitnetError: logits that are not finite.
    """
    rows: list[list[NDArray[np.float64]]] = [[] for _ in texts]
    greedy = [True] * len(texts)
    silent, done = scheduler.engine.silent, 0

    def reading(number: int) -> Reading:
        context, text = texts[number]
        if not len(context):
            raise UsageError("a context without tokens: a text needs at least one before it")
        ids = [*context, *text]

        def use(first: int, logits: NDArray[np.float32]) -> None:
            logits[:, silent] = -np.inf
            for at in range(0, len(logits), ROWS):
                part = logits[at : at + ROWS]
                targets = ids[first + at + 1 : first + at + 1 + len(part)]
                rows[number].append(-token_nats(part, targets))
                greedy[number] = greedy[number] and bool((part.argmax(-1) == targets).all())

        return Reading(ids[:-1], use, len(context) - 1)

    def count(_: Job) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(texts))

    scheduler.finish([reading(number) for number, (_, text) in enumerate(texts) if len(text)], count)
    found = [Scored(np.concatenate(parts) if parts else np.empty(0), yes) for parts, yes in zip(rows, greedy, strict=True)]
    if any(np.isnan(one.logprobs).any() for one in found):
        raise BitnetError("the model produced logits that are not finite")
    return found
