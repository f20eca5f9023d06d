"""A model that wants to write what a script says: real tokens, samplers, forms and scheduler over an engine whose logits are made up.

The token that the script has next gets the largest logit, so a form that forbids it decides otherwise.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.pages import Pages
from bitnet_cli.model.scheduler import Scheduler

from .serving import load


class ScriptedEngine:
    """Of the engine what a scheduler and a worker ask of it."""

    def __init__(self, opened: OpenModel, script: Callable[[], str]):
        self._real, self._script, self._opened = opened.engine, script, opened
        self.context, self.batch, self.config, self.silent = 2048, 128, opened.engine.config, opened.engine.silent
        self.pages, self.derived = Pages(self.context, 1), SimpleNamespace(expect=lambda _: None)

    def check(self, ids: Any, position: int = 0) -> None:
        assert len(ids) + position <= self.context

    def copy_page(self, source: int, target: int) -> None:
        pass

    def close(self) -> None:
        self._real.close()

    def all_logits(self, row: int, place: int) -> NDArray[np.float32]:
        return self._last[place]

    def step(self, rows: Any) -> list[NDArray[np.float32]]:
        found = []
        for row in rows:
            row.sequence.reserve(len(row.ids))
            row.sequence.computed(row.ids)
            found.append(np.array([self._after(row.sequence.ids) for _ in row.wanted], np.float32))
        self._last = np.concatenate([logits for logits in found if len(logits)] or [np.empty((0, 1), np.float32)])
        return found

    def _after(self, ids: list[int]) -> NDArray[np.float32]:
        tokenizer = self._opened.tokenizer
        script = tokenizer.encode(self._script(), bos=False)
        done = next((count for count in range(len(script), 0, -1) if ids[-count:] == script[:count]), 0)
        logits = np.zeros(self.config.vocab, np.float32)
        logits[script[done] if done < len(script) else min(tokenizer.eos_ids)] = 20
        return logits


def scripted(script: Callable[[], str], template: str | None) -> Callable[[Path], OpenModel]:
    """A loader of the embedded model with that script, and that chat template in place of its own."""

    def loader(path: Path) -> OpenModel:
        opened = load(path)
        scheduler = Scheduler(ScriptedEngine(opened, script))  # type: ignore[arg-type]
        return opened._replace(scheduler=scheduler, chat=opened.chat._replace(template=template))

    return loader
