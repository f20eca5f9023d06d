"""OpenAI's batch format without a server: a file of requests -> a file of answers, many at once, and again after an interruption.

    {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {..}} a line
    ──> {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}, in the order in which they are done

A line is written whole or not at all, and by its custom_id it is known which requests have one: a run that was killed at any moment goes on
where it was, and no request is answered twice. What half a line is left at the end of a file is cut off.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from anyio import to_thread

from bitnet_cli.checkpoint.strict_json import parse_object
from bitnet_cli.errors import BadFileError, BitnetError, UsageError
from bitnet_cli.serving import answers, anthropic, responses, schema, texts
from bitnet_cli.serving.blocks import Blocks
from bitnet_cli.serving.errors import ApiError, of_exception
from bitnet_cli.serving.metrics import Metrics
from bitnet_cli.serving.models import Served
from bitnet_cli.serving.running import Gate, events, log_failure

LONGEST_LINE = 4 << 20  # bytes
NO_LIMIT = 1e9  # seconds
CHATS: dict[str, tuple[Callable[..., Any], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "/v1/chat/completions": (answers.Chat, lambda body: body),
    "/v1/responses": (responses.Responses, responses.as_chat),
    "/v1/messages": (anthropic.Messages, anthropic.as_chat),
}


class Line(NamedTuple):
    """A request: its name, where it would go, and its body."""

    name: str
    url: str
    body: dict[str, Any]


def requests_of(path: Path) -> Iterator[Line]:
    """The requests of a file, one at a time. BadFileError: a line is none, or two have one name."""
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            value = parse_object(line, path, f"line {number}")
            name, body = value.get("custom_id"), value.get("body")
            if not isinstance(name, str) or not name:
                raise BadFileError(path, f"line {number}", "has no custom_id")
            if name in seen:
                raise BadFileError(path, f"line {number}", f"custom_id {name!r:.60} was there before")
            if value.get("method", "POST") != "POST" or not isinstance(value.get("url"), str) or not isinstance(body, dict):
                raise BadFileError(path, f"line {number}", "expected method POST, a url and a body")
            seen.add(name)
            yield Line(name, value["url"], body)


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise BadFileError(path, "a line", f"is longer than {LONGEST_LINE >> 20} MiB")
        yield line


class Output:
    """The file of answers, as far as it is there, open for more. done: names of the requests that have one."""

    def __init__(self, path: Path):
        self.path, self.done = path, set[str]()
        try:
            # Not in append mode: where half a line was cut off, that is where to go on.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        self._lock()
        end = 0
        for line in _lines(self._file, path):
            if not line.endswith(b"\n"):
                break
            name = parse_object(line, path, f"byte {end}").get("custom_id")
            if not isinstance(name, str) or name in self.done:
                raise BadFileError(path, f"byte {end}", "is no line of answers, or one that was there before; name another file")
            self.done.add(name)
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def _lock(self) -> None:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise UsageError(f"{self.path}: another run writes to it") from None

    def write(self, name: str, status: int, body: dict[str, Any], sync: bool = True) -> None:
        """One answer; on the disk when this returns, or, without `sync`, when the next one with it is."""
        response = {"status_code": status, "request_id": secrets.token_hex(8), "body": body}
        line = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": name, "response": response, "error": None}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.done.add(name)
        if sync:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more comes."""
        self._file.close()


async def answer(line: Line, model: Served) -> tuple[int, dict[str, Any]]:
    """Status and body of one request. What is wrong with it is its answer; what is wrong with the model is raised."""
    gate = Gate(1, NO_LIMIT)
    try:
        if line.body.get("stream"):
            raise ApiError(400, "a batch has no streams", param="stream")
        if line.url == "/v1/embeddings":
            return 200, await texts.embedded(texts.embedding_job(line.body, model.opened), model, b"")
        if line.url == "/v1/completions":
            wanted = await to_thread.run_sync(lambda: schema.completion(line.body, model.opened, b""))
            bodies: answers.Bodies | Blocks = answers.Completion(model.name, wanted, model.opened.tokenizer)
        elif line.url in CHATS:
            kind, as_chat = CHATS[line.url]
            wanted = await to_thread.run_sync(lambda: schema.chat(as_chat(line.body), model.opened, b"", model.answers))
            bodies = kind(model.name, wanted, model.opened.tokenizer)
        else:
            raise ApiError(404, f"there is nothing at {line.url!r:.60}")
        schema.most_texts(len(wanted.jobs))
        async for one in events(model, wanted, gate, Metrics()):
            assert one is not None
            bodies.take(*one)
        return 200, bodies.body()
    except ApiError as error:
        if error.status == 503:
            raise BitnetError(error.message) from None
        return error.status, error.body()
    except Exception as error:
        log_failure(error)
        known = of_exception(error)
        return known.status, known.body()


async def run(requests: Iterator[Line], output: Output, model: Served, at_once: int, progress: Callable[[int], None]) -> int:
    """Answer all requests that have no answer yet, `at_once` at a time; how many failed. progress: called with the number of answers."""
    left = (line for line in requests if line.name not in output.done)
    failed = 0

    async def work() -> None:
        nonlocal failed
        for line in left:
            status, body = await answer(line, model)
            output.write(line.name, status, body)
            failed += status != 200
            progress(len(output.done))

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return failed
