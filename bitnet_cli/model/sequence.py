"""One text, as far as it is computed: its tokens, and the pages of the KV cache that hold them.

`begin(ids)` takes over what other texts have computed of the same beginning. `feed` and its like compute more, alone; with others a text
goes through a scheduler. After Ctrl-C or an error in the middle, a sequence holds exactly the tokens that were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.pages import Page

if TYPE_CHECKING:
    from bitnet_cli.model.engine import Engine

Progress = Callable[[int, int], None]  # (tokens done, all)


class Sequence:
    """Not for two threads at once. salt: texts with another one share nothing with this one.

    ids    the tokens that are computed
    table  (pages of a context,) int64: numbers of its pages, in order
    """

    def __init__(self, engine: Engine, salt: str = ""):
        self.engine, self.salt = engine, salt
        self.ids: list[int] = []
        self.table = np.zeros(-(-engine.context // engine.pages.size), np.int64)
        self._pages: list[Page] = []

    @property
    def position(self) -> int:
        """How many tokens are computed; the next one stands there."""
        return len(self.ids)

    def begin(self, ids: Ids[int]) -> int:
        """Hold what is known of the beginning of `ids`, and nothing else; returns how many tokens that is.

        The last token always remains to be computed: its logits are what is wanted.
        """
        pages = self.engine.pages
        self.release()
        found = pages.find(ids[: len(ids) - 1], self.salt)
        pages.take(found.pages, self)
        self.table[: len(found.pages)] = [page.number for page in found.pages]
        self._pages, self.ids = found.pages, list(ids[: found.tokens])
        return found.tokens

    def reserve(self, count: int) -> None:
        """Room for `count` more tokens, in pages that no other text reads. NoPagesError: there is none."""
        pages, (at, offset) = self.engine.pages, divmod(self.position, self.engine.pages.size)
        if at < len(self._pages):
            page = self._pages[at]
            if page.writer in (self, None) and len(page.ids) == offset:
                page.writer = self
            elif len(page.users) > 1 or pages.spare:
                self._copy(at, offset)
            else:  # it holds what is known of a text that is gone, and there is no room for both
                pages.cut(page, offset)
                page.writer = self
        while (at := len(self._pages)) * pages.size < self.position + count:
            page = pages.new(self._before(at), self)
            self.table[at] = page.number
            self._pages.append(page)

    def _before(self, at: int) -> Page:
        return self._pages[at - 1] if at else self.engine.pages.root(self.salt)

    def _copy(self, at: int, offset: int) -> None:
        """Of page `at`, which holds more than is wanted or is read by others, the first tokens become a page of this text alone."""
        pages, old = self.engine.pages, self._pages[at]
        page = pages.new(self._before(at), self)
        self.engine.copy_page(old.number, page.number)
        pages.computed(page, old.ids[:offset])
        self._pages[at], self.table[at] = page, page.number
        pages.leave([old], self)

    def computed(self, ids: Ids[int]) -> None:
        """These tokens, for which there was room, are computed too."""
        size, done = self.engine.pages.size, 0
        while done < len(ids):
            at, offset = divmod(self.position, size)
            part = list(ids[done : done + size - offset])
            self.engine.pages.computed(self._pages[at], part)
            self.ids += part
            done += len(part)

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if not 0 <= position <= self.position:
            raise ValueError(f"position must be 0 to {self.position}, not {position}")
        pages, size = self.engine.pages, self.engine.pages.size
        kept, offset = -(-position // size), position % size
        left = self._pages[kept:]
        del self._pages[kept:], self.ids[position:]
        pages.leave(left, self)
        if offset and len(self._pages[-1].users) == 1 and len(self._pages[-1].ids) > offset:
            pages.cut(self._pages[-1], offset)

    def release(self) -> None:
        """Give all pages back: others that begin alike may find them, as long as there is room."""
        self.engine.pages.dismiss(self)
        self._pages, self.ids = [], []

    def feed(self, ids: Ids[int], top: int = 0, progress: Progress | None = None) -> NDArray[np.float32]:
        """Append tokens; returns the logits of the last one, (vocab,) float32, valid until the engine's next step.

        top: how many of the largest logits are needed, without those of `silent` ids; others may be minus infinity, which spares reading
        most of the head. 0: all, also those of `silent` ids, as the model computes them.
        progress(done, all) is called after every step. UsageError: as Engine.check. NoPagesError: other texts have all pages.
        """
        from bitnet_cli.model.engine import Row

        engine = self.engine
        engine.check(ids, self.position)
        logits = None
        for start in range(0, len(ids), engine.batch):
            part = ids[start : start + engine.batch]
            end = start + len(part) == len(ids)
            logits = engine.step([Row(self, part, [len(part) - 1] if end else [], top)])[0]
            if progress:
                progress(start + len(part), len(ids))
        assert logits is not None
        last: NDArray[np.float32] = logits[0]
        return last

    def feed_all(self, ids: Ids[int]) -> NDArray[np.float32]:
        """As `feed`, but the logits of every token: (len(ids), vocab) float32, a new array."""
        return np.concatenate([self._step(part).copy() for part in self._parts(ids)])

    def states(self, ids: Ids[int]) -> NDArray[np.float32]:
        """As `feed`, but what the head would see of every token, after the output norm: (len(ids), hidden) float32, a new array."""
        return np.concatenate([self._step(part, states=True).copy() for part in self._parts(ids)])

    def _parts(self, ids: Ids[int]) -> Iterator[Ids[int]]:
        self.engine.check(ids, self.position)
        return (ids[start : start + self.engine.batch] for start in range(0, len(ids), self.engine.batch))

    def _step(self, ids: Ids[int], states: bool = False) -> NDArray[np.float32]:
        from bitnet_cli.model.engine import Row

        return self.engine.step([Row(self, ids, range(len(ids)), states=states)])[0]
