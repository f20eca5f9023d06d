"""A server in this process, with the embedded model or with one that says what a test wants, and a small client."""

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.serving.app import Api, Settings
from bitnet_cli.serving.metrics import Metrics, Prometheus
from bitnet_cli.serving.models import Load, Models, Served
from bitnet_cli.serving.server import Server, listen

JSON = {"content-type": "application/json"}


def load(path: Path) -> OpenModel:
    opened = open_model(path, Options(threads=1), embeds=True)
    opened.engine.start()
    return opened


class Running:
    """A server that listens at `port`."""

    def __init__(self, port: int, api: Api, server: Server):
        self.port, self.api, self.server = port, api, server
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**(JSON if body is not None else {}), **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        status, _, data = self.ask("POST", path, body, headers)
        assert status == 200, data
        return dict(json.loads(data))

    def refused(self, path: str, body: Any, headers: dict[str, str] | None = None, status: int = 400) -> dict[str, Any]:
        """The error of a request that must fail."""
        found, _, data = self.ask("POST", path, body, headers)
        assert found == status, (found, data)
        return dict(json.loads(data)["error"])

    def get(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        status, _, data = self.ask("GET", path, None, headers)
        assert status == 200, data
        return dict(json.loads(data))

    def asked(self) -> int:
        """Texts that were written whole so far."""
        _, _, data = self.ask("GET", "/metrics")
        return sum(int(float(n)) for n in re.findall(rb"^bitnet_first_token_seconds_count(?:{.*})? (\S+)$", data, re.MULTILINE))

    def events(self, path: str, body: Any, headers: dict[str, str] | None = None) -> list[Any]:
        """The events of a stream, as JSON; `[DONE]` as it is."""
        status, given, data = self.ask("POST", path, {**body, "stream": True}, headers)
        assert status == 200 and given["content-type"].startswith("text/event-stream"), data
        lines = [line.removeprefix("data: ") for line in data.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextmanager
def running(
    *served: Served, loader: Load = load, settings: Settings | None = None, metrics: Metrics | None = None, grace: float = 5, **more: Any
) -> Iterator[Running]:
    """`served`: the embedded model where there is none. more: of Models."""
    models = Models(served or [Served("tiny", EMBEDDED_MODEL, 0)], loader, **more)
    api = Api(models, settings or Settings(), metrics or Prometheus())
    listening, started = listen("127.0.0.1", 0), threading.Event()
    server = Server(api, started.set, grace)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    port = listening.getsockname()[1]
    thread.start()
    try:
        assert started.wait(30)
        yield Running(port, api, server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
