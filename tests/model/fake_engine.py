"""An engine that computes nothing: its logits are a function of the tokens before them."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.pages import Pages

After = Callable[[Ids[int]], NDArray[np.float32]]  # tokens of a text -> logits of the next one


class FakeEngine:
    """fed: the tokens of every step; expected: what texts say of their length; tick: called with the tokens of a step."""

    def __init__(self, after: After, context: int = 100, vocab: int = 200, batch: int = 128, tick: Callable[[int], None] | None = None):
        self.context, self.batch, self.config = context, batch, SimpleNamespace(vocab=vocab)
        self.pages = Pages(context, 1)
        self.fed: list[list[int]] = []
        self.expected: list[int | None] = []
        self.derived = SimpleNamespace(expect=self.expected.append)
        self._after, self._tick = after, tick

    def check(self, ids: Ids[int], position: int = 0) -> None:
        """As Engine.check."""
        Engine.check(self, ids, position)  # type: ignore[arg-type]

    def copy_page(self, source: int, target: int) -> None:
        """There is nothing to copy."""

    def step(self, rows: list[Row]) -> list[Any]:
        """As Engine.step."""
        found = []
        for row in rows:
            assert len(row.ids)
            row.sequence.reserve(len(row.ids))
            held = [page.number for page in row.sequence._pages]
            assert row.sequence.table[: len(held)].tolist() == held
            if self._tick:
                self._tick(len(row.ids))
            self.fed.append(list(row.ids))
            row.sequence.computed(row.ids)
            at = row.sequence.position - len(row.ids) + 1
            found.append(np.array([self._after(row.sequence.ids[: at + i]) for i in row.wanted]))
        return found
