"""How likely the model found a token, and which others it found likely: from the logits, before penalties, temperature and cuts.

Probabilities are of the tokens that there are: a row of the head that stands for none (Engine.silent) has a logit of minus infinity here.
The same logits give the same bits on every machine (elementary.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bitnet_kernels import arrays, isa
from bitnet_kernels.elementary import exp, log, total
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

from bitnet_cli.model.sampler import largest_of

_SUMS = Entry("softmax", "sums_of_exp")


def compile_sums() -> None:
    """Compile what `target_logprobs` calls, so that it does not happen in the middle of a text."""
    nothing = np.zeros(0, np.float32)
    _SUMS.over(Frame(arrays.SoftmaxFrame(nothing.reshape(0, 1), nothing, np.zeros(0))), 2)


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

    Exponentials are float32's, their sum is float64's: a copy of all in float64 takes ten times as long.
    """
    rows = logits[: len(targets)]
    if len(silent):
        rows = rows.copy()
        rows[:, silent] = -np.inf
    largest, own = rows.max(1), rows[np.arange(len(targets)), targets]
    return own.astype(np.float64) - largest - log(_sums_of_exp(rows, largest)), own == largest


def _sums_of_exp(rows: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, the sum of exp(logit - largest)."""
    if isa.chosen() == isa.NAIVE:
        from bitnet_kernels.naive import softmax

        return softmax.sums_of_exp(rows, largest)
    sums = np.empty(len(rows))
    _SUMS.over(Frame(arrays.SoftmaxFrame(np.ascontiguousarray(rows), largest, sums)), 2)(0, len(rows))
    return sums
