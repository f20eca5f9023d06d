"""Ray: a batch has one answer to every request, whichever process dies; replicas of docs/scale.md answer, or refuse by name."""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from bitnet_cli.serving import guard

from ..command import bitnet
from .serving import JSON, Running, until
from .test_batch import HI, lines, request, written

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")]
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
TEXT = "/v1/completions"
# A cluster of this test alone: none that runs here already, and no token in the home folder.
ALONE = os.environ | {
    "RAY_ADDRESS": "local",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "RAY_USAGE_STATS_ENABLED": "0",
}


def below(process: int) -> dict[int, str]:
    """Processes that a process has started, and these again: what they call themselves."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
    found, new = dict[int, str](), {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= {child: names.get(child, "") for child in new}
    return found


def engines(process: int) -> list[int]:
    return [number for number, name in below(process).items() if name.startswith("ray::") and "Engine" in name]


def test_engines_that_are_killed_twice(tmp_path: Path) -> None:
    count = 2000
    requests = [request(f"r{i}", "/v1/completions", prompt=f"Number {i}", max_tokens=2, temperature=0) for i in range(count - 2)]
    requests += [request("chat", "/v1/chat/completions", messages=HI, max_tokens=3, seed=1)]
    requests += [request("wrong", "/v1/completions", prompt="Once", temperature=-1)]
    source, target = written(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bitnet_cli", "batch", str(source), str(target), "-t", "1", "-q", "--ray"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ALONE)
    for part in (0.2, 0.6):
        while not target.exists() or target.read_bytes().count(b"\n") < part * count:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(engines(process.pid)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and f"1 of {count} requests failed" in said
    found = lines(target)
    assert sorted(line["custom_id"] for line in found) == sorted(one["custom_id"] for one in requests)
    assert {line["custom_id"] for line in found if line["response"]["status_code"] != 200} == {"wrong"}
    alone = tmp_path / "alone.jsonl"
    bitnet("batch", source, alone, "-t", "1", "-q")
    texts = [{line["custom_id"]: line["response"]["body"].get("choices") for line in lines(path)} for path in (target, alone)]
    assert texts[0] == texts[1]


START = """
import sys, ray
sys.path.insert(0, sys.argv[1])
ray.init(include_dashboard=False)
from ray import serve
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
import on_ray
serve.run(on_ray.app)
print("ready", flush=True)
sys.stdin.read()
"""


class Replicas(Running):
    """The application of docs/scale.md, at a port of its own."""

    def __init__(self, folder: Path, port: int):
        (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        assert len(code.splitlines()) < 60
        (folder / "on_ray.py").write_text(code, encoding="utf-8")
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (folder / "said").open("w")}
        command = [sys.executable, "-c", START, str(folder), str(port)]
        self.process = subprocess.Popen(command, text=True, env=ALONE | {"BITNET_API_KEY": KEY}, **pipes)
        pipes["stderr"].close()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                return
        raise AssertionError((folder / "said").read_text()[-3000:])

    def close(self) -> None:
        self.process.communicate(timeout=60)


KEY = "a-key-for-replicas"
WITH_KEY = JSON | {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[Replicas]:
    found = Replicas(tmp_path_factory.mktemp("replicas"), free_port)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_replicas_answer_as_one_server(replicas: Replicas, tiny: Running) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True, "seed": 3}
    text = tiny.post(TEXT, body)["choices"][0]["text"]
    assert [replicas.post(TEXT, body, WITH_KEY)["choices"][0]["text"] for _ in range(4)] == [text] * 4
    events = replicas.events(TEXT, body, WITH_KEY)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text and events[-1] == "[DONE]"
    assert replicas.refused(TEXT, body, status=401)["code"] == "missing_api_key"
    assert replicas.refused(TEXT, {**body, "temperature": -1}, WITH_KEY)["param"] == "temperature"
    assert replicas.refused(TEXT, {"prompt": "a" * guard.LARGEST_BODY}, WITH_KEY, 413)["code"] == "body_too_large"
    assert replicas.ask("GET", "/health", None, {"Host": "evil.com"})[0] == 403


def opened(replicas: Replicas, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", replicas.port, timeout=60)
    connection.request("POST", TEXT, json.dumps({**body, "stream": True}), WITH_KEY)
    return connection, connection.getresponse()


def test_streams_come_as_they_are_written_and_end_when_a_client_goes(replicas: Replicas) -> None:
    """Minutes of work are asked of both replicas; its first pieces come at once, and nobody waits for it once its clients are gone."""
    endless = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True, "n": 128}
    for tenths in range(4):
        start = time.monotonic()
        streams = [opened(replicas, endless) for _ in range(2)]  # the second goes to the other replica, which has nothing to do
        assert all(stream.readline().startswith(b"data: ") for _, stream in streams)
        time.sleep(tenths / 10)
        for connection, stream in streams:
            stream.close()
            connection.close()
        for _ in range(4):
            replicas.post(TEXT, {"prompt": "Two", "max_tokens": 2}, WITH_KEY)
        assert time.monotonic() - start < 10  # all of it takes 25 s on two cores


def outcome(replicas: Replicas, number: int) -> str:
    """What a client gets of one request: all of it, or the name by which it is refused. Anything else is an exception."""
    body = {"prompt": f"Number {number}", "max_tokens": 64, "ignore_eos": True, "temperature": 0}
    if number % 3:
        connection, stream = opened(replicas, body)
        data = stream.read().decode()
        connection.close()
        if stream.status == 200:
            pieces = [line.removeprefix("data: ") for line in data.splitlines() if line.startswith("data: ")]
            return "whole" if pieces[-1] == "[DONE]" else str(json.loads(pieces[-1])["error"]["code"])
        return str(json.loads(data)["error"]["code"])
    status, _, raw = replicas.ask("POST", TEXT, body, WITH_KEY)
    answer = json.loads(raw)
    if status == 200:
        return "whole" if answer["usage"]["completion_tokens"] == 64 else "cut"
    return str(answer["error"]["code"])


def test_a_replica_that_is_killed(replicas: Replicas) -> None:
    found, broken, numbers, over = Counter[str](), list[BaseException](), iter(range(10**6)), threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                found[outcome(replicas, next(numbers))] += 1
            except Exception as error:
                broken.append(error)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        until(lambda: found["whole"] > 40, 60)
        before = engines(replicas.process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        killed = found["whole"]
        until(lambda: found["whole"] > killed + 80, 60)
        until(lambda: len(set(engines(replicas.process.pid)) - {before[0]}) == 2, 60)
    finally:
        over.set()
        for client in clients:
            client.join(60)
    print(dict(found))
    assert broken == []
    assert set(found) <= {"whole", "no_replica"}
    assert found["no_replica"] <= 8 * 3  # no more than what ran, or was sent there before the others knew
