"""The models of a server, named when it starts: loaded when they are asked for, unloaded when idle or when memory is short.

A request names one of them and nothing else: never a path, never something to download. One model alone answers to any name. A model that
is in use stays, and one that was loaded stays for STAY seconds, so that requests for two that do not fit together cannot make the server
load all the time: they get 429 with the time after which to ask again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from bitnet_cli.errors import BitnetError, printable
from bitnet_cli.gguf_file.split_names import parts_beside
from bitnet_cli.machine.memory import available_bytes
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.serving.chat import Answers
from bitnet_cli.serving.errors import ApiError, of_exception
from bitnet_cli.serving.worker import Worker

STAY = 30.0  # seconds that a model stays before another may take its place
BESIDE = 250 << 20  # bytes that a model takes beside its file and its cache (DESIGN, budgets)
log = logging.getLogger("bitnet.serve")
Load = Callable[[Path], OpenModel]


@dataclass
class Served:
    """One model. users: requests that are with it; worker: None while it is not loaded."""

    name: str
    path: Path
    created: int
    worker: Worker | None = None
    users: int = 0
    loaded: float = -math.inf  # when, by the monotonic clock
    used: float = -math.inf
    answers: Answers = field(default_factory=Answers)

    @property
    def opened(self) -> OpenModel:
        assert self.worker is not None
        return self.worker.opened

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return sum(part.stat().st_size for part in parts_beside(self.path) if part.is_file()) + BESIDE


class Models:
    """For one event loop.

    load    opens a model and makes it ready; called in a thread
    worker  what computes with it
    memory  bytes that all of them may take together; None: what is available when one is to be loaded
    idle    seconds after which one that nobody uses is unloaded; 0: never
    """

    def __init__(
        self,
        served: Sequence[Served],
        load: Load,
        worker: Callable[[OpenModel], Worker] = Worker,
        *,
        memory: int | None = None,
        idle: float = 0,
        stay: float = STAY,
    ):
        self.served = list(served)
        self._load, self._worker, self._memory, self._idle, self._stay = load, worker, memory, idle, stay
        self._loading = asyncio.Lock()

    def preload(self) -> None:
        """Load the first one now, before there is an event loop. Raises what the loader raises."""
        model = self.served[0]
        model.worker, model.loaded, model.used = self._worker(self._load(model.path)), time.monotonic(), time.monotonic()

    def find(self, name: object) -> Served:
        """The model that a request means. ApiError 404: there is none of that name; 400: it names none, and there are several."""
        if len(self.served) == 1:
            return self.served[0]
        if not isinstance(name, str):
            raise ApiError(400, "model: expected the name of a model; GET /v1/models lists them", param="model")
        found = next((one for one in self.served if one.name == name), None)
        if found is None:
            raise ApiError(404, f"there is no model {name!r:.80} here; GET /v1/models lists them", param="model", code="model_not_found")
        return found

    @contextlib.asynccontextmanager
    async def use(self, name: object) -> AsyncIterator[Served]:
        """The model, loaded, and kept so inside. ApiError 429: there is no room for it now."""
        model = self.find(name)
        model.users += 1
        try:
            if model.worker is None:
                async with self._loading:
                    if model.worker is None:
                        await self._open(model)
            yield model
        finally:
            model.users -= 1
            model.used = time.monotonic()

    async def _open(self, model: Served) -> None:
        await self._make_room(model)
        start = time.monotonic()
        try:
            opened = await to_thread.run_sync(self._load, model.path)
        except BitnetError as error:
            log.error("model %s cannot be loaded: %s", printable(model.name), error)
            known = of_exception(error, {str(model.path): model.name})
            raise ApiError(503, f"the model cannot be loaded: {known.message}", code="model_not_loaded", retry=30) from None
        model.worker, model.loaded = self._worker(opened), time.monotonic()
        log.info("model %s is loaded, %.1f s", printable(model.name), model.loaded - start)

    async def _make_room(self, wanted: Served) -> None:
        """Unload others, the one first that was used longest ago. ApiError 429: none may go, and without that there is no room."""
        while not self._fits(wanted):
            others = [one for one in self.served if one.worker is not None]
            if not others:
                return  # the loader says what is missing
            free = [one for one in others if not one.users]
            if not free:
                raise ApiError(429, "all models that could make room are in use", code="models_busy", retry=5)
            oldest = min(free, key=lambda one: one.used)
            wait = oldest.loaded + self._stay - time.monotonic()
            if wait > 0:
                message = "another model was loaded a moment ago, and there is no room for both"
                raise ApiError(429, message, code="models_busy", retry=math.ceil(wait))
            await self._close(oldest)

    def _fits(self, wanted: Served) -> bool:
        if self._memory is not None:
            return sum(one.size for one in self.served if one.worker is not None) + wanted.size <= self._memory
        available = available_bytes()
        return available is None or wanted.size <= available

    async def _close(self, model: Served) -> None:
        worker, model.worker = model.worker, None
        assert worker is not None
        await to_thread.run_sync(worker.close)
        del worker
        gc.collect()  # a model is a circle of objects and weak references; its arrays are gigabytes
        log.info("model %s is unloaded", printable(model.name))

    async def watch_idle(self) -> None:
        """Unload what nobody uses, for ever."""
        while self._idle:
            await asyncio.sleep(min(self._idle / 4, 5.0))
            async with self._loading:
                for model in self.served:
                    if model.worker is not None and not model.users and time.monotonic() - model.used > self._idle:
                        await self._close(model)

    async def close(self) -> None:
        """End all of them."""
        async with self._loading:
            for model in self.served:
                if model.worker is not None:
                    await self._close(model)
