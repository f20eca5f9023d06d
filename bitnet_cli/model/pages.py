"""Who has which page of the KV cache, and which texts begin alike. Of the cache's arrays nothing is known here.

A page holds the keys and values of up to `size` positions. Pages are trees: a page's tokens follow those of its parent, so a page is found
by all tokens before it and its own, and texts that begin alike meet in the same pages, computed once and stored once. Texts with different
salts never do: each salt has a tree of its own.

A page whose text has left stays, and may be found again, until its room is needed: of pages that nobody uses, and that have none after
them, the one that was left first goes.

Ctrl-C may cut any of this off: it can be done again, since who reads a page is a set, and `dismiss` finds whatever a text has.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class NoPagesError(Exception):
    """All pages are in use. For the scheduler, which makes room."""


class Page:
    """number: which part of the cache's arrays; ids: tokens that are computed, from its first position on; users: texts that read it.

    writer: the only one of them that may add tokens, and only behind all that there are; others copy it first.
    """

    __slots__ = ("children", "ids", "left", "number", "parent", "users", "writer")

    def __init__(self, number: int, parent: "Page | None"):
        self.number, self.parent = number, parent
        self.ids: list[int] = []
        self.children: dict[int, list[Page]] = {}  # by their first token
        self.users: set[object] = set()
        self.left = 0  # when the last user left
        self.writer: object = None


class Found(NamedTuple):
    """The longest known beginning of a text."""

    pages: list[Page]  # the last one may hold more tokens than are alike
    tokens: int


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = min(len(a), len(b))
    if a[:count] == b[:count]:
        return count
    return next(i for i in range(count) if a[i] != b[i])


class Pages:
    """size: positions of a page; count: how many pages there are. Not for two threads at once."""

    def __init__(self, size: int, count: int):
        self.size, self.count = size, count
        self._taken: dict[int, Page] = {}
        self._roots: dict[str, Page] = {}
        self._clock = itertools.count(1)

    @property
    def unused(self) -> int:
        """Pages that hold nothing."""
        return self.count - len(self._taken)

    @property
    def spare(self) -> bool:
        """Whether a new page can be had: one that holds nothing, or in place of one that nobody reads."""
        return self.unused > 0 or bool(self._ends())

    def _ends(self) -> list[Page]:
        """Pages that nobody reads, and that have none after them."""
        return [page for page in self._taken.values() if not page.users and not page.children]

    @property
    def used(self) -> int:
        """Pages that texts read, each counted once."""
        return sum(bool(page.users) for page in self._taken.values())

    def root(self, salt: str) -> Page:
        """What the first pages of texts with that salt follow."""
        return self._roots.setdefault(salt, Page(-1, None))

    def find(self, ids: Sequence[int], salt: str = "") -> Found:
        """The longest beginning of `ids` that is computed."""
        page, pages, done = self.root(salt), list[Page](), 0
        while done < len(ids):
            rest = list(ids[done : done + self.size])
            there = [(common_prefix(child.ids, rest), child) for child in page.children.get(rest[0], ())]
            if not there:
                break
            count, page = max(there, key=lambda one: one[0])
            pages.append(page)
            done += count
            if count < self.size:
                break
        return Found(pages, done)

    def take(self, pages: Sequence[Page], text: object) -> None:
        """A text reads them from now on."""
        for page in pages:
            page.users.add(text)

    def leave(self, pages: Sequence[Page], text: object) -> None:
        """The text reads them no longer."""
        for page in reversed(pages):
            if page.writer is text:
                page.writer = None
            page.users.discard(text)
            if not page.users:
                page.left = next(self._clock)
                if not page.ids:
                    self._drop(page)

    def dismiss(self, text: object) -> None:
        """It reads no page any longer."""
        self.leave([page for page in self._taken.values() if text in page.users], text)

    def new(self, after: Page, text: object) -> Page:
        """An empty page, which the text writes. NoPagesError: all are in use."""
        if not self.unused:
            ends = self._ends()
            if not ends:
                raise NoPagesError
            self._drop(min(ends, key=lambda page: page.left))
        page = Page(min(set(range(self.count)) - self._taken.keys()), after)
        page.users.add(text)
        page.writer, self._taken[page.number] = text, page
        return page

    def computed(self, page: Page, ids: Sequence[int]) -> None:
        """The page holds these tokens too, after those that it held."""
        assert page.parent is not None
        page.ids += ids
        if ids and len(page.ids) == len(ids):
            page.parent.children.setdefault(ids[0], []).append(page)

    def forget(self) -> None:
        """Give up what nobody reads."""
        for page in [page for page in self._taken.values() if not page.users]:
            self._drop(page)

    def cut(self, page: Page, length: int) -> None:
        """The page holds its first `length` tokens only. What came after it, which nobody uses, is given up."""
        for child in list(_flat(page.children)):
            self._drop(child)
        if length == 0:
            self._unlink(page)
        del page.ids[length:]

    def _drop(self, page: Page) -> None:
        if self._taken.get(page.number) is not page:
            return  # with what it followed
        for child in list(_flat(page.children)):
            self._drop(child)
        self._unlink(page)
        del self._taken[page.number]

    def _unlink(self, page: Page) -> None:
        if page.ids and page.parent is not None:
            beside = page.parent.children.get(page.ids[0], [])
            if page in beside:
                beside.remove(page)
            if not beside:
                page.parent.children.pop(page.ids[0], None)


def _flat(children: dict[int, list[Page]]) -> Iterator[Page]:
    return itertools.chain.from_iterable(children.values())
