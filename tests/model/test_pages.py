"""Pages of the KV cache: what begins alike is found, what is read stays, and what nobody reads goes when room is needed."""

import numpy as np
import pytest

from bitnet_cli.model.pages import NoPagesError, Page, Pages, common_prefix

SIZE = 4


class Holder:
    """A text that holds pages, as Sequence does, without an engine."""

    def __init__(self, pages: Pages, salt: str = ""):
        self.pages, self.salt = pages, salt
        self.held: list[Page] = []
        self.ids: list[int] = []

    def write(self, ids: list[int]) -> None:
        """Take over what is known of them, and compute the rest in pages of its own."""
        found = self.pages.find(ids, self.salt)
        self.pages.take(found.pages, self)
        self.held, self.ids = found.pages, ids[: found.tokens]
        if self.held and found.tokens % SIZE:  # another text may read the rest of the last one: a copy
            old = self.held[-1]
            new = self.pages.new(old.parent, self)  # type: ignore[arg-type]
            self.pages.computed(new, old.ids[: found.tokens % SIZE])
            self.held[-1] = new
            self.pages.leave([old], self)
        while len(self.ids) < len(ids):
            if len(self.ids) % SIZE == 0:
                self.held.append(self.pages.new(self.held[-1] if self.held else self.pages.root(self.salt), self))
            part = ids[len(self.ids) : len(self.ids) + SIZE - len(self.ids) % SIZE]
            self.pages.computed(self.held[-1], part)
            self.ids = self.ids + part

    def leave(self) -> None:
        self.pages.dismiss(self)
        self.held = []


def test_a_beginning_is_found() -> None:
    pages, one = Pages(SIZE, 8), None
    one = Holder(pages)
    one.write([1, 2, 3, 4, 5, 6, 7])
    for ids, known in (([1, 2, 3, 4, 5, 6, 7], 7), ([1, 2, 3, 4, 5, 9], 5), ([1, 2, 9], 2), ([2, 1], 0), ([], 0)):
        assert pages.find(ids).tokens == known
    assert pages.find([1, 2, 3], "salt").tokens == 0
    two = Holder(pages)
    two.write([1, 2, 3, 4, 5, 9, 9, 9, 9])
    assert [page.number for page in two.held][:1] == [page.number for page in one.held][:1] and pages.used == 4
    assert pages.find([1, 2, 3, 4, 5, 9, 9]).tokens == 7
    one.leave()
    two.leave()
    assert (pages.used, pages.unused) == (0, 4)
    assert pages.find([1, 2, 3, 4, 5, 6, 7]).tokens == 7
    pages.forget()
    assert pages.unused == 8 and pages.find([1]).tokens == 0


def test_the_one_left_first_goes_first() -> None:
    pages = Pages(SIZE, 4)
    for first in (10, 20):
        text = Holder(pages)
        text.write([first] * 8)
        text.leave()
    again = Holder(pages)
    again.write([10] * 8)  # nothing is computed
    again.leave()
    other = Holder(pages)
    other.write([30] * 5)
    assert pages.find([20] * 8).tokens == 0
    assert pages.find([10] * 8).tokens == 8
    with pytest.raises(NoPagesError):
        Holder(pages).write([40] * 12)


def test_at_random() -> None:
    """Against a list of all texts: what is held is found whole; no page is in two places; all come back in the end."""
    rng, pages, texts = np.random.default_rng(0), Pages(SIZE, 24), list[Holder]()
    full = 0
    for _ in range(2000):
        if texts and rng.random() < 0.45:
            texts.pop(int(rng.integers(len(texts)))).leave()
            continue
        base = texts[int(rng.integers(len(texts)))].ids if texts and rng.random() < 0.7 else []
        ids = base[: int(rng.integers(0, len(base) + 1))] + [int(i) for i in rng.integers(0, 3, rng.integers(1, 20))]
        text = Holder(pages, "ab"[int(rng.integers(2))])
        try:
            text.write(ids)
        except NoPagesError:
            text.leave()
            full += 1
            continue
        texts.append(text)
        for one in texts:
            assert pages.find(one.ids, one.salt).tokens == len(one.ids)
            assert [i for page in one.held for i in page.ids][: len(one.ids)] == one.ids
        held = {page.number for one in texts for page in one.held}
        assert pages.used == len(held) and pages.unused + len(held) <= pages.count
    assert full > 10
    for one in texts:
        one.leave()
    pages.forget()
    assert pages.unused == pages.count


def test_common_prefix() -> None:
    assert [common_prefix(a, b) for a, b in (([], []), ([1], []), ([1, 2], [1, 3]), ([1, 2], [1, 2, 3]))] == [0, 0, 1, 2]
