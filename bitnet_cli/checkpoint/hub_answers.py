"""What a hub answers, looked at before huggingface_hub sees it: it makes paths of what some headers say, and reads listings of any size.

In: the process's huggingface_hub. Out: its HTTP client has two more hooks, which every request and every answer goes through, redirects
among them. A header that would lead out of the cache ends the request with BadFileError; so does a listing that is too large, or that
takes too long.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from bitnet_cli.errors import BadFileError, BitnetError, UsageError

METADATA_SECONDS = 30.0  # for a listing, or for what is asked of a file before it is fetched
SILENCE_SECONDS = 60.0  # in a download
MAX_LISTING = 32 << 20  # bytes; a repository of 100,000 files has 20 MB
MAX_PACKED = 64 << 10  # bytes of one that is compressed, though it was asked for as it is: it may become a thousand times as large
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PLAIN = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z_.-]{0,127}")  # no separators, no drive, no `..`, nothing that a file name could not be
SHA256 = re.compile(r"[0-9a-f]{64}")


def guard() -> None:
    """See to it that huggingface_hub's client, also one that the program has set or will be made anew, has the hooks."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before: Any = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) or _http.default_client_factory
    if getattr(before, "guarded", False):
        return

    def factory() -> Any:
        client = before()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), _ask_plainly],
            "response": [*hooks.get("response", []), check_answer],
        }
        if client.timeout.read is None:  # as by default: whoever has set a time limit keeps it
            client.timeout = SILENCE_SECONDS
        return client

    factory.guarded = True  # type: ignore[attr-defined]
    set_client_factory(factory)


def _is_listing(request: Any) -> bool:
    return "/api/" in request.url.path and request.method == "GET"


def _ask_plainly(request: Any) -> None:
    if _is_listing(request):
        request.headers["Accept-Encoding"] = "identity"


def check_answer(response: Any) -> None:
    """BadFileError for an answer (httpx.Response) with a header that would lead out of the cache."""
    headers, host = response.headers, response.request.url.host
    for name, expected in (("X-Repo-Commit", COMMIT), ("X-Linked-ETag", _PLAIN), ("X-Xet-Hash", SHA256), ("ETag", _PLAIN)):
        value = headers.get(name)
        if value is None or (name == "ETag" and response.request.method != "HEAD"):  # of a download itself it is not used
            continue
        if not expected.fullmatch(value.removeprefix("W/").strip('"') if expected is _PLAIN else value):
            raise BadFileError(host, f"header {name}", f"is {value[:80]!r}, expected {_expectation(expected)}")
    if _is_listing(response.request):
        packed = headers.get("Content-Encoding", "identity").strip().lower() != "identity"
        library = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or what huggingface_hub uses in its place
        limited = type("Limited", (_Limited, library.SyncByteStream), {})
        response.stream = limited(response.stream, host, MAX_PACKED if packed else MAX_LISTING)


def _expectation(pattern: re.Pattern[str]) -> str:
    return {COMMIT: "a commit", SHA256: "64 hexadecimal digits"}.get(pattern, "letters, digits and signs that a file's name may have")


class _Limited:
    """The body of an answer, as the HTTP library reads it, with an end."""

    def __init__(self, stream: Any, host: str, most: int):
        self._stream, self._host, self._left = stream, host, most
        self._most, self._until = most, time.monotonic() + METADATA_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise BadFileError(self._host, "list of files", f"is larger than {self._most} bytes")
            if time.monotonic() > self._until:
                raise BitnetError(f"{self._host}: the list of files took longer than {METADATA_SECONDS:.0f} s")
            yield part

    def close(self) -> None:
        """As the HTTP library asks for."""
        self._stream.close()


def checked_commit(commit: object, revision: str, source: str) -> str:
    """The commit that a listing names. BadFileError: it is none, or not the one that was asked for."""
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise BadFileError(source, "commit", f"is {str(commit)[:80]!r}, expected 40 hexadecimal digits")
    if COMMIT.fullmatch(revision) and commit != revision:
        raise BadFileError(source, "commit", f"is {commit}, asked for was {revision}")
    return commit


def checked_revision(revision: str) -> str:
    """A branch, a tag or a commit as the user names it; it becomes the name of a file. UsageError for what cannot be one."""
    parts = {*PurePosixPath(revision).parts, *PureWindowsPath(revision).parts}
    if not revision or not revision.isprintable() or ".." in parts or PurePosixPath(revision).anchor or PureWindowsPath(revision).anchor:
        raise UsageError("--revision: expected a branch, a tag or a commit")
    return revision


def checked_sizes(siblings: Any, source: str) -> dict[str, tuple[int | None, str | None]]:
    """Name -> (size, SHA-256), where they are said, of a listing's files. BadFileError for what no listing holds."""
    files: dict[str, tuple[int | None, str | None]] = {}
    for item in siblings or []:
        name, size, lfs = item.rfilename, item.size, item.lfs
        if not isinstance(name, str) or not name or "\\" in name or ".." in name.split("/") or name.startswith("/"):
            raise BadFileError(source, "list of files", f"names {str(name)[:80]!r}, which is no path in a repository")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63):
            raise BadFileError(source, name, f"has the size {str(size)[:40]}, expected a number of bytes")
        digest = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
        if digest is not None and (not isinstance(digest, str) or not SHA256.fullmatch(digest)):
            raise BadFileError(source, name, f"has the SHA-256 {str(digest)[:80]!r}, expected 64 hexadecimal digits")
        files[name] = (size, digest)
    return files
