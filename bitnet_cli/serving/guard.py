"""Who may ask, and how much: before a request meets a route.

    request id          every answer has `x-request-id`
    Host                a name that this server has (DNS rebinding)
    Origin              the server's own, or one of --cors-origin; CORS headers for these and for no other
    key                 where there are keys, all but /health and the page need one
    content type        a body must say that it is JSON: what a form of another site can send without asking is something else
    size                of a body; it must come in time

Nothing of a body or a key is logged. Header sizes and times are in server.py, where the connection is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet_cli.errors import printable
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.page import FILES

LARGEST_BODY = 4 << 20  # bytes
BODY_SECONDS = 30.0
OPEN = {"/health", "/v1/health", *FILES}  # need no key
LONGEST_LOGGED = 200  # characters of a path
log = logging.getLogger("bitnet.serve")


@dataclass(frozen=True)
class Rules:
    """keys: that are accepted; none: everybody is. hosts: names beside the local ones; origins: sites whose pages may ask (`*`: all)."""

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    # So that salts, from which the cache of prefixes is divided, tell nothing of a key.
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def salt_of(self, key: str) -> bytes:
        """What stands for a key beyond this file."""
        return hmac.digest(self.secret, key.encode(), "sha256") if key else b""

    def accepts(self, key: str) -> bool:
        """Compared with every key, each in a time that does not depend on how much is alike."""
        given = hashlib.sha256(key.encode()).digest()
        found = [hmac.compare_digest(given, hashlib.sha256(one.encode()).digest()) for one in self.keys]
        return any(found)


class Guard:
    """An ASGI application around another one. answered: called with path and status of every answer."""

    def __init__(self, app: ASGIApp, rules: Rules, answered: Callable[[str, int], None] = lambda _path, _status: None):
        self.app, self.rules, self._answered = app, rules, answered
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        start, identity = time.monotonic(), secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["id"], state["salt"] = identity, b""
        headers = Headers(scope=scope)
        origin, status = headers.get("origin", ""), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = identity
                answer["x-content-type-options"] = "nosniff"
                self._share(origin, answer)
            await send(message)

        try:
            if not await self._preflight(scope, headers, sending):
                self._check(scope, headers)
                await self.app(scope, receive, sending)
        except ApiError as error:
            await send_error(scope, error, sending)
        finally:
            if status:
                self._answered(scope["path"], status)
            path = printable(scope["path"][:LONGEST_LOGGED])
            log.info("%s %s %s %d %.0f ms", identity, printable(scope["method"][:20]), path, status, 1000 * (time.monotonic() - start))

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if name_of(host) not in self._names(scope):
            raise ApiError(403, "this server does not go by that Host; --allowed-host names others", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not (self._allows(origin) or origin.partition("://")[2].lower() == host.lower()):
            raise ApiError(403, "pages of other sites may not ask; --cors-origin allows one", code="origin_not_allowed")
        if self.draining and scope["path"] != "/health":
            raise ApiError(503, "the server is shutting down", retry=5)
        if self.rules.keys and scope["path"] not in OPEN:
            scope["state"]["salt"] = self.rules.salt_of(self._key(headers))
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "expected a body with content-type application/json", code="unsupported_media_type")

    def _key(self, headers: Headers) -> str:
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", code="missing_api_key")
        if not self.rules.accepts(key):
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return key

    def _names(self, scope: Scope) -> set[str]:
        local = (scope.get("server") or ("",))[0] or ""
        return {"localhost", "127.0.0.1", "[::1]", name_of(f"[{local}]" if ":" in local else local), *map(name_of, self.rules.hosts)} - {""}

    def _allows(self, origin: str) -> bool:
        return "*" in self.rules.origins or origin.lower() in (one.lower().rstrip("/") for one in self.rules.origins)

    def _share(self, origin: str, answer: MutableHeaders) -> None:
        if origin and self._allows(origin):
            answer["access-control-allow-origin"] = origin
            answer["access-control-expose-headers"] = "x-request-id"
            answer.add_vary_header("origin")

    async def _preflight(self, scope: Scope, headers: Headers, send: Send) -> bool:
        """Answer a browser that asks whether a page of another site may ask."""
        if scope["method"] != "OPTIONS" or not self._allows(headers.get("origin", "")) or not headers.get("origin"):
            return False
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type, x-api-key, anthropic-version"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": allowed})
        await send({"type": "http.response.body", "body": b""})
        return True


def name_of(host: str) -> str:
    """A Host header without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")


async def read_body(request: Request) -> bytes:
    """The body, as far as it is allowed to be long and slow. ApiError 413, 408."""
    parts, size = [], 0
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > LARGEST_BODY:
        raise ApiError(413, f"the body is larger than {LARGEST_BODY >> 20} MiB", code="body_too_large")
    with anyio.move_on_after(BODY_SECONDS) as patience:
        try:
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BODY:
                    raise ApiError(413, f"the body is larger than {LARGEST_BODY >> 20} MiB", code="body_too_large")
                parts.append(part)
        except ClientDisconnect:
            raise ApiError(400, "the client went before the body had come") from None
    if patience.cancelled_caught:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} seconds")
    return b"".join(parts)


async def send_error(scope: Scope, error: ApiError, send: Send) -> None:
    """An error as a whole answer, in the shape of the API that was asked. What was not read of a body, the connection ends with."""
    await send_json(send, error.status, shaped(scope["path"], error, scope["state"]["id"]), {**error.headers(), "connection": "close"})


def shaped(path: str, error: ApiError, identity: str) -> dict[str, Any]:
    """The body of an error: OpenAI's, or Anthropic's where its API is asked."""
    if not path.startswith("/v1/messages"):
        return error.body()
    # Anthropic's types are OpenAI's here but for two.
    kind = {413: "request_too_large", 408: "timeout_error", 500: "api_error"}.get(error.status, error.type)
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": identity}


async def send_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    """A whole answer."""
    data = json.dumps(value, ensure_ascii=False).encode()
    given = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})
