"""Clients that go, that do not read, that are too many; a server that ends; models that come and go."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.embedded import EMBEDDED
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.serving import stream
from bitnet_cli.serving.app import Settings
from bitnet_cli.serving.jobs import Ended, Event, Job, Tell, Written
from bitnet_cli.serving.metrics import Metrics
from bitnet_cli.serving.models import Served
from bitnet_cli.serving.running import Gate, events
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.serving.worker import Ticket, Worker

from .serving import Running, load, running, until
from .told import ToldWorker

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"prompt": "Once upon a time", "max_tokens": 450, "ignore_eos": True}


def request(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def begin(server: Running, path: str, body: Any) -> socket.socket:
    """A request whose answer nobody reads yet."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    raw.sendall(request(path, body))
    return raw


def slow_worker(workers: list[ToldWorker], pause: float = 0.02) -> Any:
    def make(opened: Any) -> ToldWorker:
        workers.append(ToldWorker(opened, lambda _job: ("word " * 2000, pause)))
        return workers[-1]

    return make


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes(streamed: bool) -> None:
    workers: list[ToldWorker] = []
    with running(worker=slow_worker(workers)) as server:
        raw = begin(server, TEXT, {**LONG, "stream": streamed, "n": 2})
        until(lambda: workers and len(workers[0].told) == 2)
        if streamed:
            assert b" 200 " in raw.recv(100)
        raw.close()
        until(lambda: all(ticket.cancelled for ticket in workers[0].told), 3)
        until(lambda: server.api.gate.inside == 0 and server.api.models.served[0].users == 0)


def test_a_client_that_goes_while_it_waits(tiny: Running) -> None:
    """The one before it goes on; the next one is not kept waiting by it."""
    first = begin(tiny, TEXT, {**LONG, "stream": True})
    assert b" 200 " in first.recv(100)
    second = begin(tiny, TEXT, {**LONG, "stream": True})
    assert b" 200 " in second.recv(100)
    second.close()
    until(lambda: tiny.api.gate.inside == 1)
    whole = b""
    while b"[DONE]" not in whole:
        part = first.recv(1 << 16)
        assert part
        whole += part
    first.close()
    assert tiny.post(TEXT, {"prompt": "a", "max_tokens": 2})["usage"]["completion_tokens"] == 2


def test_a_text_ends_within_a_step_of_its_cancellation() -> None:
    """Also one that waits, and whether or not anything is computed meanwhile."""
    opened, steps, done = load(EMBEDDED["tiny"].path), list[int](), threading.Event()
    step = opened.scheduler.step

    def counted() -> Any:
        steps.append(1)
        return step()

    opened.scheduler.step = counted  # type: ignore[method-assign]
    worker, ends, written = Worker(opened, parallel=1), dict[str, tuple[str, int]](), threading.Event()

    def tell(name: str) -> Tell:
        def told(event: Event) -> None:
            if isinstance(event, Written):
                written.set()
            if isinstance(event, Ended):
                ends[name] = event.finish, len(steps)
                done.set()

        return told

    job = Job(opened.tokenizer.encode("Once upon a time"), Sampling(temperature=0), 400, ignore_eos=True)
    first = worker.submit(job, tell("first"))
    assert written.wait(30)
    waiting = worker.submit(job, tell("waiting"))
    waiting.cancel()
    at = len(steps)
    assert done.wait(30) and ends["waiting"][0] == "cancelled" and ends["waiting"][1] <= at + 2
    done.clear()
    first.cancel()
    at = len(steps)
    assert done.wait(30) and ends["first"][0] == "cancelled" and ends["first"][1] <= at + 2
    worker.close()


def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL", 0.3)
    workers: list[ToldWorker] = []

    def make(opened: Any) -> ToldWorker:
        workers.append(ToldWorker(opened, lambda _job: ("x" * 40_000_000, 0), 1 << 16))
        return workers[-1]

    with running(worker=make) as server:
        raw = begin(server, TEXT, {**LONG, "stream": True})
        until(lambda: workers and workers[0].told and workers[0].told[0].cancelled, 30)
        until(lambda: server.api.gate.inside == 0)
        raw.close()


def test_streams_that_have_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet_cli.serving import app

    monkeypatch.setattr(app, "PING", 0.05)
    workers: list[ToldWorker] = []
    with running(worker=slow_worker(workers, 0.3)) as server:
        raw = begin(server, TEXT, {**LONG, "stream": True})
        data = b""
        while b": ping\n\n" not in data:
            data += raw.recv(1000)
        raw.close()


@pytest.mark.parametrize("steps", range(8))
def test_whoever_runs_the_application_may_cancel_it(steps: int) -> None:
    """Once, by Task.cancel, and at the moment at which something is written too."""

    class Telling:
        def submit(self, _job: Job, tell: Tell) -> Ticket:
            self.tell, self.ticket = tell, Ticket()
            return self.ticket

    worker, wanted = Telling(), Wanted([Job((5,), Sampling(), 9)])
    model = Served("tiny", EMBEDDED["tiny"].path, 0, worker)  # type: ignore[arg-type]

    async def listen() -> None:
        async for _ in events(model, wanted, Gate(1, 60), Metrics(), 10):
            pass

    async def main() -> None:
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.01)
        worker.tell(Written("a", [5]))
        for _ in range(steps):
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait([listening], timeout=5)
        assert listening.cancelled() and worker.ticket.cancelled

    asyncio.run(main())


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[ToldWorker] = []
    with running(worker=slow_worker(workers), settings=Settings(parallel=1, queue=1)) as server:
        raws = [begin(server, TEXT, {**LONG, "stream": True}) for _ in range(2)]
        until(lambda: server.api.gate.inside == 2)
        status, headers, data = server.ask("POST", TEXT, LONG)
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert json.loads(data)["error"]["code"] == "queue_full"
        assert server.ask("GET", "/health")[0] == 200
        for raw in raws:
            raw.close()
        until(lambda: server.api.gate.inside == 0)


def test_a_request_that_takes_too_long() -> None:
    workers: list[ToldWorker] = []
    with running(worker=slow_worker(workers), settings=Settings(seconds=0.3)) as server:
        status, headers, data = server.ask("POST", TEXT, LONG)
        assert status == 504 and headers["x-should-retry"] == "false"
        assert json.loads(data)["error"]["type"] == "timeout_error"
        assert workers[0].told[0].cancelled
        assert server.events(TEXT, LONG)[-1]["error"]["code"] == "timeout"


def test_eight_at_once(tiny: Running) -> None:
    def ask(seed: int) -> str:
        return str(tiny.post(TEXT, {"prompt": f"Number {seed % 3}", "seed": seed, "max_tokens": 25})["choices"][0]["text"])

    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == alone


def test_drain() -> None:
    """What runs may end; what comes is refused; what does not end in time hears why."""
    workers: list[ToldWorker] = []

    def say(job: Job) -> tuple[str, float]:
        return ("word " * (10 if job.limit == 5 else 4000), 0.05)

    def make(opened: Any) -> ToldWorker:
        workers.append(ToldWorker(opened, say))
        return workers[-1]

    with running(worker=make, grace=1.5) as server:
        quick, endless = begin(server, TEXT, {**LONG, "max_tokens": 5, "stream": True}), begin(server, TEXT, {**LONG, "stream": True})
        until(lambda: workers and len(workers[0].told) == 2)
        server.server.should_exit = True
        until(lambda: server.api.app.draining)
        found = {}
        for name, raw in (("quick", quick), ("endless", endless)):
            data = b""
            while part := raw.recv(1 << 16):
                data += part
            found[name] = data.decode()
            raw.close()
        assert "[DONE]" in found["quick"]
        assert "shutting down" in found["endless"] and "[DONE]" not in found["endless"]


def test_sigterm_ends_with_zero(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitnet_cli", "serve", "--uds", str(tmp_path / "socket"), "--log-level", "warning", "-t", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while "serving" not in line:
            assert line
            line = process.stderr.readline()
        if os.name == "posix":
            assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.connect(str(tmp_path / "socket"))
        raw.sendall(request(TEXT, {**LONG, "max_tokens": 100, "stream": True}))
        whole = raw.recv(200)
        process.send_signal(signal.SIGTERM)
        while part := raw.recv(1 << 16):
            whole += part
        raw.close()
        assert b"[DONE]" in whole
        assert process.wait(20) == 0
        assert not (tmp_path / "socket").exists()
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def two(**more: Any) -> Any:
    return running(*(Served(name, EMBEDDED[name].path, 1) for name in ("tiny", "tiny-a4.8")), **more)


def test_names_of_models() -> None:
    loaded = []

    def counted(path: Path) -> Any:
        loaded.append(path)
        return load(path)

    with two(loader=counted) as server:
        assert [one["id"] for one in server.get("/v1/models")["data"]] == ["tiny", "tiny-a4.8"]
        assert loaded == []
        for name in ("/etc/passwd", "../tiny", "microsoft/bitnet-b1.58-2B-4T", "tiny.gguf", str(EMBEDDED["tiny"].path), ""):
            status, _, data = server.ask("POST", TEXT, {"prompt": "a", "model": name, "max_tokens": 1})
            assert status == 404 and json.loads(data)["error"]["code"] == "model_not_found", name
        assert server.refused(TEXT, {"prompt": "a", "max_tokens": 1})["param"] == "model"
        assert loaded == []
        texts = {}
        for name in ("tiny", "tiny-a4.8", "tiny"):
            found = server.post(TEXT, {"prompt": "Once", "model": name, "max_tokens": 8, "temperature": 0})
            assert found["model"] == name
            assert texts.setdefault(name, found["choices"][0]["text"]) == found["choices"][0]["text"]
        assert len(loaded) == 2
        assert server.get("/v1/models/tiny")["id"] == "tiny"
        assert server.ask("GET", "/v1/models/none")[0] == 404
        said = json.dumps([server.get("/props?model=tiny"), server.get("/v1/models")])
        assert str(EMBEDDED["tiny"].path.parent) not in said


def test_one_model_at_a_time() -> None:
    """There is room for one: they take turns, but not at once, and never away from who uses it."""
    with two(memory=300 << 20, stay=1.0) as server:
        ask = {"prompt": "Once", "max_tokens": 2}
        server.post(TEXT, {**ask, "model": "tiny"})
        status, headers, data = server.ask("POST", TEXT, {**ask, "model": "tiny-a4.8"})
        assert status == 429 and headers["retry-after"] == "1" and json.loads(data)["error"]["code"] == "models_busy"
        time.sleep(1.1)
        long = begin(server, TEXT, {**LONG, "model": "tiny", "stream": True})
        assert long.recv(100)
        if server.api.models.served[0].users:
            assert server.ask("POST", TEXT, {**ask, "model": "tiny-a4.8"})[0] == 429
        long.close()
        until(lambda: server.api.models.served[0].users == 0)
        server.post(TEXT, {**ask, "model": "tiny-a4.8"})
        assert [one.worker is not None for one in server.api.models.served] == [False, True]


def test_a_model_that_nobody_uses_sleeps() -> None:
    with running(idle=0.4) as server:
        first = server.post(TEXT, {"prompt": "Once", "max_tokens": 5, "temperature": 0})["choices"]
        worker = server.api.models.served[0].worker
        assert worker is not None
        until(lambda: server.api.models.served[0].worker is None)
        until(lambda: not worker._thread.is_alive())
        assert server.post(TEXT, {"prompt": "Once", "max_tokens": 5, "temperature": 0})["choices"] == first


def test_numbers(tiny: Running) -> None:
    tiny.post(TEXT, {"prompt": "Once", "max_tokens": 5})
    tiny.events(TEXT, {"prompt": "Once", "max_tokens": 5})
    tiny.refused(TEXT, {"prompt": 5})
    tiny.ask("GET", "/v1/models", None, {"Host": "evil.com"})
    for path in ("/made-up", "/made-up-too", "/v1/models/none"):
        tiny.ask("GET", path)
    status, headers, data = tiny.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert b'bitnet_tokens_total{kind="new"}' in data and b"bitnet_first_token_seconds_bucket" in data
    counts = dict(re.findall(r"^bitnet_requests_total{(.*?)} (\S+)$", data.decode(), re.MULTILINE))
    for labels in (f'route="{TEXT}",status="200"', f'route="{TEXT}",status="400"', 'route="/v1/models",status="403"'):
        assert float(counts[labels]) >= 1
    assert float(counts['route="other",status="404"']) >= 3 and "made-up" not in data.decode()
    with running(metrics=Metrics()) as silent:  # as the command has it without --metrics
        assert silent.ask("GET", "/metrics")[0] == 404
