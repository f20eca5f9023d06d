"""Server-sent events (WHATWG HTML, section 9.2), and what happens when the client goes or does not read.

Every event is `data: {json}` or, for APIs that name theirs, `event: name` and `data: {json}`; a stream that has nothing to say for PING
seconds sends a comment, which clients read over. openai-python fails on an event without data, so none is sent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

PING = 10.0  # seconds
STALL = 30.0  # seconds in which a client reads nothing, and then its request ends
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
COMMENT = b": ping\n\n"
T = TypeVar("T")


def encode(value: Any, name: str | None = None) -> bytes:
    """One event."""
    data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


class EventStream:
    """An answer that sends `pieces` as they come. When the client goes, or reads nothing for STALL seconds, `pieces` is closed, which ends
    the texts that it waits for. `holding` is closed last.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], holding: AsyncExitStack):
        self._pieces, self._holding = pieces, holding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        async with self._holding, anyio.create_task_group() as group:

            async def watch() -> None:
                await gone(receive)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await self._send(send)
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await self._pieces.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async for piece in self._pieces:
            with anyio.move_on_after(STALL) as patience:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if patience.cancelled_caught:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def gone(receive: Receive) -> None:
    """Return when the client has gone. The request's body has been read before."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def unless_gone(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` gives; None where the client goes before, and `work` is cancelled."""
    result: T | None = None
    fault: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await gone(request.receive)
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result = await work()
        except Exception as error:  # out of the group it would come as a group of exceptions
            fault = error
        group.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return result
