"""A decoder and the tokens that its KV cache holds, so that what two prompts begin with alike is computed once.

`prefill(ids)` keeps the longest beginning of `ids` that the cache holds, feeds the rest, and returns the logits of the last token. After
Ctrl-C or an error in the middle, the session holds exactly the tokens that were computed, and goes on from there.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.decoder import Decoder

Progress = Callable[[int, int], None]  # (tokens done, all)


class Prefilled(NamedTuple):
    logits: NDArray[np.float32]  # (vocab,) of the last token; the decoder's own array, valid until the next call
    fed: int  # tokens that were computed; the others were in the cache


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = min(len(a), len(b))
    return next((i for i in range(count) if a[i] != b[i]), count)


class Session:
    """Not for two threads at once. Use the decoder through the session, or after `emptied`."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._ids: list[int] = []

    @property
    def ids(self) -> list[int]:
        """The tokens in the cache, a copy."""
        return self._ids[: self.decoder.position]

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return self.decoder.position

    @property
    def context(self) -> int:
        """Most tokens that fit."""
        return self.decoder.context

    def prefill(self, ids: Sequence[int], top: int = 0, progress: Progress | None = None) -> Prefilled:
        """Hold exactly `ids`. The last token is always fed: its logits are the answer. top: as in Decoder.feed.

        progress(done, all) is called as the tokens that are new get computed. UsageError: as Decoder.feed.
        """
        kept = min(self.shared(ids), max(len(ids) - 1, 0))
        self.rewind(kept)
        return Prefilled(self.feed(ids[kept:], top, progress), len(ids) - kept)

    def shared(self, ids: Sequence[int]) -> int:
        """How many tokens of `ids`, from the first one on, the cache holds."""
        return common_prefix(self.ids, ids)

    def feed(self, ids: Sequence[int], top: int = 0, progress: Progress | None = None) -> NDArray[np.float32]:
        """Append tokens, as Decoder.feed."""
        with self._holding(ids):
            return self.decoder.feed(ids, top, progress)

    def feed_batch(self, ids: Sequence[int], top: int = 0) -> NDArray[np.float32]:
        """Append tokens, as Decoder.feed_batch."""
        with self._holding(ids):
            return self.decoder.feed_batch(ids, top)

    def logits_of(self, row: int, top: int = 0) -> NDArray[np.float32]:
        """As Decoder.logits_of."""
        return self.decoder.logits_of(row, top)

    @contextlib.contextmanager
    def _holding(self, ids: Sequence[int]) -> Iterator[None]:
        """`ids` are computed in the body: count those that are, whatever ends it."""
        # Ctrl-C can come between any two lines here. What the decoder has counted is computed, and no other token stays.
        del self._ids[self.decoder.position :]
        try:
            self._ids += ids
            yield
        finally:
            del self._ids[self.decoder.position :]

    def adopt(self, ids: Sequence[int]) -> None:
        """The decoder's cache was filled with these tokens from elsewhere."""
        self.decoder.position = len(ids)
        self._ids = list(ids)

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        self.decoder.rewind(position)
        del self._ids[position:]

    def emptied(self) -> Decoder:
        """The decoder, holding nothing, for other work than continuing a text; the session forgets what it held."""
        self._ids = []
        self.decoder.rewind(0)
        return self.decoder

    def close(self) -> None:
        """End the decoder's threads."""
        self.decoder.close()
