"""How likely the model found a token, and which others it found likely: from the logits, before penalties, temperature and cuts.

Probabilities are of the tokens that there are: a row of the head that stands for none (Engine.silent) has a logit of minus infinity here.
"""

import math
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
