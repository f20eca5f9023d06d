"""The texts of one request, from the queue to the last event."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator

import anyio

from bitnet_cli.serving.errors import ApiError, of_exception
from bitnet_cli.serving.jobs import Ended, Event, Failed, Prompted, Tell
from bitnet_cli.serving.metrics import Metrics
from bitnet_cli.serving.models import Served
from bitnet_cli.serving.schema import Wanted

log = logging.getLogger("bitnet.serve")


class Gate:
    """How many requests there may be: `most` that are computed or wait; more get 429. seconds: that one may take."""

    def __init__(self, most: int, seconds: float):
        self.most, self.seconds, self.inside = most, seconds, 0
        self._took = 1.0  # seconds of a request, the latest counted most

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """For the time of a request. ApiError 429: there are too many."""
        if self.inside >= self.most:
            wait = max(1, min(60, round(self._took)))
            raise ApiError(429, f"{self.inside} requests are here already; ask again later", code="queue_full", retry=wait)
        self.inside += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self._took = 0.8 * self._took + 0.2 * (time.monotonic() - start)


async def events(
    model: Served, wanted: Wanted, gate: Gate, metrics: Metrics, ping: float | None = None
) -> AsyncGenerator[tuple[int, Event] | None, None]:
    """(index of the text, event), from all texts as they come; None when nothing came for `ping` seconds.

    Closed early, it cancels what is not done. ApiError: a text failed, or the server is shutting down, or the time is over.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
    start = time.monotonic()
    deadline, first = start + gate.seconds, True
    assert model.worker is not None

    def teller(index: int) -> Tell:
        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(queue.put_nowait, (index, event))

        return tell

    tickets = [model.worker.submit(job, teller(index)) for index, job in enumerate(wanted.jobs)]
    left = len(tickets)
    try:
        while left:
            patience = deadline - time.monotonic()
            if patience <= 0:
                raise ApiError(504, f"the request took more than {gate.seconds:.0f} seconds", code="timeout")
            one = None
            # Not asyncio.wait_for: before Python 3.12 a cancellation is lost there that comes together with an event.
            with anyio.move_on_after(min(patience, ping or patience)):
                one = await queue.get()
            if one is None:
                if ping:
                    yield None
                continue
            index, event = one
            if isinstance(event, Failed):
                log_failure(event.error)
                raise of_exception(event.error, {str(model.path): model.name})
            if isinstance(event, Ended):
                left -= 1
                if event.finish == "cancelled":
                    raise ApiError(503, "the server is shutting down", retry=5)
                metrics.ended(event.timings)
            elif first and not isinstance(event, Prompted):
                first = False
                metrics.first_token(time.monotonic() - start)
            yield index, event
    finally:
        for ticket in tickets:
            ticket.cancel()


def log_failure(error: BaseException) -> None:
    """What of a failure belongs into the log: what went wrong, and where, but nothing of the text."""
    if of_exception(error).status == 500:
        log.error("a request failed", exc_info=error)
