"""How likely the model found a token, and which others it found likely: from the logits, before penalties, temperature and cuts.

Probabilities are of the tokens that there are: a row of the head that stands for none (Engine.silent) has a logit of minus infinity here.
The same logits give the same bits on every machine (elementary.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bitnet_kernels.elementary import exp, exp_f32, log, total
from numpy.typing import NDArray

from bitnet_cli.model.sampler import largest_of

TOGETHER = 1 << 16  # logits: rows of small vocabularies are taken several at a time



class TokenLogprob(NamedTuple):
    """top: (id, log-probability) of the likeliest tokens, likeliest first. Natural logarithms."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """logits: (vocab,) float32, all of them. count: how many of the likeliest tokens to name."""
    values = logits.astype(np.float64)
    largest = float(values.max())
    all_of_them = largest + float(log(total(exp(values - largest))))
    count = min(count, int(np.count_nonzero(values > -np.inf)))
    likeliest = largest_of(logits, count) if count else np.empty(0, np.int64)
    top = tuple((int(i), float(values[i]) - all_of_them) for i in likeliest)
    return TokenLogprob(token, float(values[token]) - all_of_them, top)


def target_logprobs(
    logits: NDArray[np.float32], targets: Sequence[int], silent: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """log softmax(logits)[target] of each row, and whether it is the largest. logits: (tokens, vocab) float32; silent: ids without a share.

    A few rows at a time, in float32 but for the sum: a copy of all in float64 takes ten times as long.
    """
    found, largest = np.empty(len(targets)), np.empty(len(targets), np.bool_)
    some = max(1, TOGETHER // logits.shape[1])
    for start in range(0, len(targets), some):
        these = targets[start : start + some]
        rows = logits[start : start + len(these)]
        if len(silent):
            rows = rows.copy()
            rows[:, silent] = -np.inf
        top, own = rows.max(1), rows[np.arange(len(these)), these]
        sums = total(exp_f32(rows - top[:, None]).astype(np.float64))
        found[start : start + len(these)] = own.astype(np.float64) - top - log(sums)
        largest[start : start + len(these)] = own == top
    return found, largest
