"""Logits -> the next token. In: (vocab,) float32. Out: a token id.

The chain, in llama.cpp's order: repeat penalty, top-k, top-p, min-p, temperature, draw. Temperature 0 takes the likeliest token.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError

PENALTY_WINDOW = 64  # tokens that the repeat penalty looks back at


@dataclass(frozen=True)
class Sampling:
    """How to choose. Raises UsageError for a value out of range."""

    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = -1  # -1: random

    def __post_init__(self) -> None:
        ranges = (
            ("--temp", self.temperature, 0.0, 100.0),
            ("--top-k", self.top_k, 0, math.inf),
            ("--top-p", self.top_p, 0.0, 1.0),
            ("--min-p", self.min_p, 0.0, 1.0),
            ("--repeat-penalty", self.repeat_penalty, 0.01, 100.0),
            ("--seed", self.seed, -1, 2**63 - 1),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:  # also true of NaN
                raise UsageError(f"{name} is {value}, expected {low} to {high}")


class Sampler:
    """Chooses tokens of one text. `seed` is the number that makes the same choices again."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._recent: deque[int] = deque(maxlen=PENALTY_WINDOW)

    @property
    def top(self) -> int:
        """How many of the largest logits decide the choice, 0 where all do: `choose` takes minus infinity for any other.

        A repeat penalty over 1 only lowers logits, of at most PENALTY_WINDOW tokens: what is then largest was among so many more.
        """
        s = self.sampling
        count = 1 if s.temperature == 0 else s.top_k
        if count == 0 or s.repeat_penalty < 1.0:
            return 0
        return count if s.repeat_penalty == 1.0 else count + PENALTY_WINDOW

    def observe(self, ids: Iterable[int]) -> None:
        """Count tokens of the prompt as recent, for the repeat penalty."""
        self._recent.extend(ids)

    def choose(self, logits: NDArray[np.float32], position: int = 0) -> int:
        """The token for `position`; counted as recent. BitnetError where the logits are not finite."""
        # With a top, minus infinity stands for logits that do not matter: a few of 100,000 are left, NaN among them.
        ids = np.flatnonzero(logits != -np.inf) if self.top else np.arange(len(logits))
        if self.top:
            logits = logits[ids]
        if not len(logits) or not math.isfinite(float(logits.max()) - float(logits.min())):
            raise BitnetError(f"the model produced logits that are not finite, at position {position}")
        s = self.sampling
        if s.repeat_penalty != 1.0 and self._recent:
            recent = np.flatnonzero(np.isin(ids, np.array(self._recent)))
            logits = _penalised(logits, recent, np.float32(s.repeat_penalty))
        token = int(ids[logits.argmax() if s.temperature == 0 or s.top_k == 1 else self._draw(logits)])
        self._recent.append(token)
        return token

    def _draw(self, logits: NDArray[np.float32]) -> int:
        s = self.sampling
        ids = _largest(logits, s.top_k)
        values = logits[ids].astype(np.float64)
        weights = np.exp(values - values[0])
        probabilities = weights / weights.sum()
        # A token stays while the ones before it fall short of top_p; the likeliest always stays.
        keep = (np.cumsum(probabilities) - probabilities < s.top_p) & (weights >= s.min_p)
        keep[0] = True
        ids, values = ids[keep], values[keep]
        weights = np.exp((values - values[0]) / max(s.temperature, 1e-6))
        edges = np.cumsum(weights)
        return int(ids[min(np.searchsorted(edges, self._random.random() * edges[-1], side="right"), len(ids) - 1)])


def _penalised(logits: NDArray[np.float32], recent: NDArray[np.int64], penalty: np.float32) -> NDArray[np.float32]:
    """Divide positive logits of recent tokens by the penalty and multiply negative ones (arXiv 1909.05858, section 4.1)."""
    logits = logits.copy()
    values = logits[recent]
    logits[recent] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _largest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids of the `count` largest logits (0: all), largest first; equal ones by id, so that the choice never depends on the partition."""
    if 0 < count < len(logits):
        edge = np.partition(logits, -count)[-count]
        ids = np.flatnonzero(logits >= edge)
    else:
        ids = np.arange(len(logits))
    order = np.argsort(-logits[ids], kind="stable")
    return ids[order][: count or None]
