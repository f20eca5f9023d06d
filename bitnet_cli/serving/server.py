"""Sockets, signals and connections around the application: uvicorn with h11, told what it does not know by itself.

a connection that sends no whole header within HEADER_SECONDS is closed, and there are at most CONNECTIONS
SIGTERM and SIGINT: nothing new is accepted, what runs may end within GRACE seconds, what is left ends with an error, exit code 0;
a second signal ends at once
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.serving.app import Api

HEADER_SECONDS = 10.0
LARGEST_HEADER = 16 << 10  # bytes
KEEP_ALIVE = 5
CONNECTIONS = 1000
GRACE = 30.0  # seconds


class Protocol(H11Protocol):
    """A connection that has to say something soon."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As in asyncio."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._wait_for_header()

    def data_received(self, data: bytes) -> None:
        """As in asyncio."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._patience is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_header()  # a kept connection has begun another request

    def connection_lost(self, exc: Exception | None) -> None:
        """As in asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_header(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Server(uvicorn.Server):
    """Ends as the head of this file says. ready: called when it listens."""

    def __init__(self, api: Api, ready: Callable[[], None] = lambda: None, grace: float = GRACE):
        # The grace of uvicorn's own is the last resort: it cancels tasks, and no client hears why.
        super().__init__(
            uvicorn.Config(
                api.app,
                http=Protocol,
                ws="none",
                lifespan="on",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=LARGEST_HEADER,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(grace) + 5,
            )
        )
        self._api, self._ready, self._grace = api, ready, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn; after the grace, what still runs is cancelled where clients hear of it."""
        self._api.app.draining = True
        timer = asyncio.get_running_loop().call_later(self._grace, self._api.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal that was answered is not raised again afterwards: the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains, a second one ends at once."""
        if self.should_exit:
            self.force_exit = True
            self._api.cancel_all()
        self.should_exit = True


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. UsageError, BitnetError: it cannot, and why."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror}") from None
    found = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        hint = {errno.EADDRINUSE: "; --port 0 takes a free one", errno.EACCES: "; ports under 1024 are for the system"}
        raise BitnetError(f"{host}:{port}: {error.strerror}{hint.get(error.errno or 0, '')}") from None
    return found


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that only this user may open; a left one is replaced. UsageError: there is something else by that name."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            _refuse_live(path)
            path.unlink()
        else:
            raise UsageError(f"{path}: exists, and is no socket")
    except FileNotFoundError:
        pass
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        found.bind(str(path))
    except OSError as error:
        found.close()
        raise BitnetError(f"{path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return found


def _refuse_live(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except OSError:
            return
    raise BitnetError(f"{path}: another server listens there")


def serve(server: Server, sockets: Sequence[socket.socket]) -> None:
    """Until a signal comes."""
    server.run(sockets=list(sockets))
