"""Logits -> the next token. In: (vocab,) float32. Out: a token id.

The chain, in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw. Temperature 0 takes the likeliest token.
With Mirostat: penalties, temperature, Mirostat, draw. A logit of minus infinity is a token that is no choice, whatever the options are.
The same logits, options and seed make the same choice on every machine: exp and log are elementary.py's, sums have one order, and PCG64
computes in integers.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable

import numpy as np
from bitnet_kernels.elementary import LN2, exp, log, total
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.sampling import Sampling

GROUPS = 8  # of logits for each of the largest: two of these are rarely in one
SORTED = 4  # candidates for each of the largest: to sort so many takes no longer than to find out which are the largest
MOST_BIAS = 1e30  # of a logit: what infinity stands for
COLDEST = 1e-6  # a temperature that divides


class Sampler:
    """Chooses tokens of one text. `seed` is the number that makes the same choices again.

    never   ids that are not chosen, though the model may find them likely
    silent  ids that are no choices at all: what a search for the largest logits leaves out by itself (Engine.silent); `silence` sets them
    """

    def __init__(self, sampling: Sampling, never: Collection[int] = ()):
        self.sampling = s = sampling
        self.seed = s.seed if s.seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._window: deque[int] = deque(maxlen=s.repeat_last_n if s.repeat_last_n >= 0 else None)
        self._recent: Counter[int] = Counter()  # of the tokens in the window, where they matter
        self._never = np.array(sorted(never), np.int64)
        self._silent: NDArray[np.int64] = np.empty(0, np.int64)
        self._open: NDArray[np.bool_] = np.empty(0, np.bool_)  # (vocab,) whether a token may be chosen, once it was asked for
        self._most_surprise = 2 * s.mirostat_tau  # Mirostat's mu, bits
        self._bias_ids = np.array([token for token, _ in sorted(s.logit_bias)], np.int64)
        self._biases = np.array([bias for _, bias in sorted(s.logit_bias)], np.float32)
        self._penalises, self._top = s.penalises, self._top_at_first()

    @property
    def top(self) -> int:
        """How many of the largest logits decide the next choice, 0 where all do: `choose` takes minus infinity for any other.

        Penalties that only lower logits move the recent tokens and no others: what is then largest was among so many more. So it is with
        biases, and with tokens that are never chosen, but for the silent ones, which are not among the largest that are given. A penalty
        that raises logits could raise any recent one, and Mirostat needs all probabilities.
        """
        return self._top and self._top + len(self._recent)

    def _top_at_first(self) -> int:
        """`top` while no token is recent."""
        s = self.sampling
        count = 1 if s.temperature == 0 else s.top_k
        if count == 0 or (s.mirostat and s.temperature > 0) or (self._biases > 0).any():
            return 0
        if s.penalises and (s.repeat_penalty < 1.0 or s.presence_penalty < 0 or s.frequency_penalty < 0):
            return 0
        return count + len(self._never) + len(self._biases)

    def silence(self, ids: NDArray[np.int64]) -> None:
        """Tokens that mean nothing, ascending: never chosen, whatever their logits are."""
        self._silent, self._open = ids, np.empty(0, np.bool_)

    def heard(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """All logits, with minus infinity for the silent ones: what probabilities are taken from."""
        if not len(self._silent):
            return logits
        logits = logits.copy()
        logits[self._silent] = -np.inf
        return logits

    def observe(self, ids: Iterable[int]) -> None:
        """Count tokens of the prompt as recent, for the penalties."""
        if self._penalises:
            for token in ids:
                self._remember(token)

    def choose(self, logits: NDArray[np.float32], position: int = 0) -> int:
        """The token for `position`; counted as recent. BitnetError: a logit is NaN or infinity, or all are minus infinity."""
        all_open = not (len(self._never) or len(self._silent))
        if not all_open and len(self._open) != len(logits):
            self._open = np.ones(len(logits), np.bool_)
            self._open[self._never[self._never < len(logits)]] = self._open[self._silent] = False
        # With a top, minus infinity stands for logits that do not matter: a few of 100,000 are left, NaN among them.
        if self.top:
            ids = (logits != -np.inf).nonzero()[0]
            ids = ids if all_open else ids[self._open[ids]]
        elif all_open:
            return self._chosen(None, logits, position)
        else:
            ids = np.flatnonzero(self._open)
        return self._chosen(ids, logits[ids], position)

    def choose_allowed(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_], asked: int = 0, position: int = 0) -> int | None:
        """As `choose`, as if there were no tokens but the allowed ones: (tokens of the vocabulary,), at least one, and none of `never`.

        asked: how many of the largest logits there are at least (Sequence.feed), 0 for all. None, and nothing has happened: with all
        logits the choice might be another one.
        """
        ids = np.flatnonzero(logits != -np.inf) if asked else np.empty(0, np.int64)
        if asked and len(ids) < len(logits) - len(self._silent):
            values = logits[ids]
            edge = np.partition(values, -asked)[-asked]  # no logit that is missing is as large
            ids = ids[values >= edge]
            ids = ids[: np.searchsorted(ids, len(allowed))]
            ids = ids[allowed[ids]]
            if not self._decided(ids, logits[ids], int(np.count_nonzero(allowed)) - len(ids), float(edge)):
                return None
        else:
            _check_finite(np.delete(logits, self._silent), position)
            ids = np.flatnonzero(allowed)
        return self._chosen(ids, logits[ids], position)

    def _decided(self, ids: NDArray[np.int64], logits: NDArray[np.float32], others: int, edge: float) -> bool:
        """Whether the choice among `ids` is the same with `others` more tokens, all with logits under `edge`. No penalty raises a logit."""
        s = self.sampling
        if not others:
            return True
        logits = self._moved(logits, ids)
        values = -np.sort(-logits[logits >= edge].astype(np.float64))
        if s.temperature == 0 or len(values) >= s.top_k:
            return len(values) > 0
        # The others are some of the top-k. Each weighs at most `heaviest`, so min-p cuts them off; and they make the sum from which
        # top-p counts larger, by nothing or by all of them: either way the same tokens must be kept. 1e-9: for rounding of float64 sums.
        if not len(values):
            return False
        *_, heaviest = weights = exp(np.append(values, edge) - values[0])
        if heaviest >= s.min_p:
            return False
        edges = weights[:-1].cumsum()
        before, least = edges - weights[:-1], edges[-1]
        most = least + (s.top_k - len(values)) * heaviest
        return bool(((before < s.top_p * least * (1 - 1e-9)) == (before < s.top_p * most * (1 + 1e-9))).all())

    def _chosen(self, ids: NDArray[np.int64] | None, logits: NDArray[np.float32], position: int) -> int:
        """One of `ids` (None: of all tokens), by their logits."""
        _check_finite(logits, position)
        s = self.sampling
        if ids is None and (self._penalises or len(self._biases)):
            ids = np.arange(len(logits))
        if ids is not None:
            logits = self._moved(logits, ids)
        if s.temperature == 0 or (s.top_k == 1 and not s.mirostat):
            place = int(logits.argmax())
        else:
            place = self._draw_by_surprise(logits) if s.mirostat else self._draw(logits)
        token = place if ids is None else int(ids[place])
        if self._penalises:
            self._remember(token)
        return token

    def _remember(self, token: int) -> None:
        if len(self._window) == self._window.maxlen:
            oldest = self._window[0]
            self._recent[oldest] -= 1
            if not self._recent[oldest]:
                del self._recent[oldest]
        self._window.append(token)
        self._recent[token] += 1

    def _moved(self, logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of `ids` (ascending) with biases and penalties."""
        if len(self._biases):
            logits, places = logits.copy(), np.searchsorted(ids, self._bias_ids)
            there = places < len(ids)
            there[there] = ids[places[there]] == self._bias_ids[there]
            logits[places[there]] += self._biases[there]
        return self._penalised(logits, ids) if self._recent else logits

    def _penalised(self, logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of `ids` (in order), lower or higher where the token is recent.

        Repeat penalty: positive ones are divided, negative ones multiplied (arXiv 1909.05858, section 4.1). Presence and frequency: as
        the OpenAI API documents them, logit - count * frequency - (count > 0) * presence.
        """
        s = self.sampling
        recent = np.array(sorted(self._recent), np.int64)
        places = np.searchsorted(ids, recent)
        there = places < len(ids)
        there[there] = ids[places[there]] == recent[there]
        recent, places = recent[there], places[there]
        logits, penalty = logits.copy(), np.float32(s.repeat_penalty)
        values = logits[places]
        if s.repeat_penalty != 1.0:
            values = np.where(values > 0, values / penalty, values * penalty)
        counts = np.array([self._recent[token] for token in recent.tolist()], np.float32)
        logits[places] = values - counts * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)
        return logits

    def _draw(self, logits: NDArray[np.float32]) -> int:
        s, whole = self.sampling, 0.0
        if s.min_p > 0 and not 0 < s.top_k < len(logits):
            # All have a share of the sum from which top-p counts, but only what min-p leaves need be in order.
            weights = exp(logits.astype(np.float64) - logits.max())
            ids, whole = ordered(logits, np.flatnonzero(weights >= s.min_p)), float(total(weights))
        else:
            ids = largest_of(logits, s.top_k)
        # Weights as they are, for the cuts, and by temperature, for the draw: of few values, exp takes no longer for both than for one.
        both = np.empty((2, len(ids)))
        values = logits[ids].astype(np.float64)
        np.subtract(values, values[0], both[0])
        np.divide(both[0], max(s.temperature, COLDEST), both[1])
        plain, heated = exp(both)
        edges = np.add.accumulate(plain)
        # A token stays while the ones before it fall short of top_p; the likeliest always stays.
        count = np.count_nonzero((edges - plain < s.top_p * (whole or edges[-1])) & (plain >= s.min_p))
        return int(ids[self._pick(heated[: max(1, count)])])

    def _draw_by_surprise(self, logits: NDArray[np.float32]) -> int:
        """Mirostat 2.0 (arXiv 2007.14966): tokens with more surprise than mu are cut off, and mu follows the surprise of what was drawn.

        Surprise is -log2 of the probability before the cut, as the paper defines it (S in its algorithm 1).
        """
        s = self.sampling
        values = logits.astype(np.float64) / max(s.temperature, COLDEST)
        values -= values.max()
        weights = exp(values)
        surprise = (log(total(weights)) - values) / LN2
        ids = np.flatnonzero(surprise <= self._most_surprise)
        ids = ordered(logits, ids) if len(ids) else np.array([logits.argmax()])
        drawn = ids[self._pick(weights[ids])]
        self._most_surprise -= s.mirostat_eta * (float(surprise[drawn]) - s.mirostat_tau)
        return int(drawn)

    def _pick(self, weights: NDArray[np.float64]) -> int:
        """A place, drawn by weight: the one random number that a choice takes."""
        edges = np.add.accumulate(weights)
        return min(int(edges.searchsorted(self._random.random() * edges[-1], side="right")), len(weights) - 1)


def _check_finite(logits: NDArray[np.float32], position: int) -> None:
    if not len(logits) or not math.isfinite(np.maximum.reduce(logits)):  # the largest of numbers with NaN among them is NaN
        raise BitnetError(f"the model produced logits that are not finite, at position {position}")


def ordered(logits: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """Ascending ids by their logits, largest first; equal ones by id."""
    return ids[(-logits[ids]).argsort(kind="stable")]


def largest_of(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids of the `count` largest logits (0: all), `ordered`: never as a partition happens to leave them."""
    if not 0 < count < len(logits):
        return (-logits).argsort(kind="stable")
    ids = _candidates(logits, count)
    if len(ids) > SORTED * count:
        values = logits[ids]
        ids = ids[values >= np.partition(values, -count)[-count]]
    return ordered(logits, ids)[:count]


def _candidates(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids, ascending, of few logits with the `count` largest among them.

    Of groups of logits, those with the largest maxima hold at least `count` logits that reach the least of these maxima, so the largest
    reach it too. A tenth of the time of a partition of 128,256 logits, for most of which this is one comparison.
    """
    groups = GROUPS * count
    size = len(logits) // groups
    if size < 2:
        return np.arange(len(logits))
    maxima = logits[: size * groups].reshape(size, groups).max(0)
    return np.flatnonzero(logits >= np.partition(maxima, -count)[-count])
