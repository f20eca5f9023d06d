"""What the KV cache of an engine holds, and texts that begin with it."""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.engine import Engine
from bitnet_cli.model.pages import Page
from bitnet_cli.model.sequence import Sequence


def held(engine: Engine, salt: str = "") -> list[int]:
    """Tokens of the longest text that is computed."""

    def longest(page: Page) -> list[int]:
        after = [longest(child) for children in page.children.values() for child in children]
        return [*page.ids, *max(after, key=len, default=[])]

    return longest(engine.pages.root(salt))


def prefill(engine: Engine, ids: list[int], top: int = 0) -> tuple[NDArray[np.float32], int]:
    """Logits of the last of `ids`, a copy, and how many tokens were computed for them; the others were held."""
    text = Sequence(engine)
    try:
        known = text.begin(ids)
        return text.feed(ids[known:], top).copy(), len(ids) - known
    finally:
        text.release()
