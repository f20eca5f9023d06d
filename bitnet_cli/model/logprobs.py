"""How likely the model found a token, and which others it found likely: from the logits, before penalties, temperature and cuts.

Probabilities are of the tokens that there are: a row of the head that stands for none (Engine.silent) has a logit of minus infinity here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenLogprob(NamedTuple):
    """top: (id, log-probability) of the likeliest tokens, likeliest first. Natural logarithms."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """logits: (vocab,) float32, all of them. count: how many of the likeliest tokens to name."""
    values = logits.astype(np.float64)
    largest = float(values.max())
    total = largest + math.log(float(np.exp(values - largest).sum()))
    count = min(count, int(np.count_nonzero(values > -np.inf)))
    likeliest = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
    likeliest = likeliest[np.lexsort((likeliest, -values[likeliest]))]
    top = tuple((int(i), float(values[i]) - total) for i in likeliest)
    return TokenLogprob(token, float(values[token]) - total, top)


def target_logprobs(
    logits: NDArray[np.float32], targets: Sequence[int], silent: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """log softmax(logits)[target] of each row, and whether it is the largest. logits: (tokens, vocab) float32; silent: ids without a share.

    Row by row, in float32 but for the sum: a copy of all in float64 takes ten times as long.
    """
    found, largest = np.empty(len(targets)), np.empty(len(targets), np.bool_)
    for i, target in enumerate(targets):
        row = logits[i]
        if len(silent):
            row = row.copy()
            row[silent] = -np.inf
        top = row.max()
        found[i] = float(row[target]) - float(top) - math.log(float(np.exp(row - top).sum(dtype=np.float64)))
        largest[i] = row[target] == top
    return found, largest
