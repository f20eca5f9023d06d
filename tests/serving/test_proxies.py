"""TLS by a proxy, as docs/serve.md configures it: Caddy and nginx themselves, with certificates of this test."""

import http.client
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.serving.app import Settings
from bitnet_cli.serving.guard import Rules
from bitnet_cli.serving.jobs import Job

from .serving import JSON, Running, running, until
from .told import ToldWorker

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
NAME, KEY = "chat.example.org", "a-key-behind-a-proxy"
WITH_KEY = JSON | {"Authorization": f"Bearer {KEY}", "Host": NAME}
PAUSE, PIECES = 0.1, 20
WORKERS: list[ToldWorker] = []
# All that the pages of these servers do not say, so that each runs as anybody, beside others, and asks nobody for a certificate.
CADDY = """{
    admin off
    skip_install_trust
    auto_https disable_redirects
    storage file_system %s
}
"""
NGINX = """daemon off;
pid %(folder)s/pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path %(folder)s; proxy_temp_path %(folder)s; fastcgi_temp_path %(folder)s; uwsgi_temp_path %(folder)s;
    scgi_temp_path %(folder)s;
%(server)s
}
"""


def worker(opened: Any) -> ToldWorker:
    def say(job: Job) -> tuple[str, float]:
        return "A piece" * (PIECES if job.limit == 100 else 2000), PAUSE

    WORKERS.append(ToldWorker(opened, say))
    return WORKERS[-1]


@pytest.fixture(scope="module")
def behind() -> Iterator[Running]:
    with running(worker=worker, settings=Settings(Rules([KEY], [NAME]))) as found:
        yield found


def configuration(start: str) -> str:
    """The block of docs/serve.md that begins so."""
    (found,) = re.findall(rf"^```\n({re.escape(start)} {{\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def caddy(folder: Path, port: int, upstream: int) -> tuple[list[str], Path]:
    """A command, and the certificate to trust."""
    site = configuration(NAME).replace(NAME, f"{NAME}:{port}").replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    site = site.replace("{\n", "{\n    tls internal\n", 1)  # by an authority of its own
    (folder / "Caddyfile").write_text(CADDY % (folder / "storage") + site)
    command = ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    return command, folder / "storage" / "pki" / "authorities" / "local" / "root.crt"


def nginx(folder: Path, port: int, upstream: int) -> tuple[list[str], Path]:
    key, certificate = folder / "chat.key", folder / "chat.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run([*made, "-days", "2", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = configuration("server").replace("/etc/ssl/", f"{folder}/").replace("listen 443", f"listen 127.0.0.1:{port}")
    server = server.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    (folder / "nginx.conf").write_text(NGINX % {"folder": folder, "server": server})
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], certificate


class Connection(http.client.HTTPSConnection):
    """To NAME, which is here."""

    def __init__(self, port: int, trusted: Path):
        super().__init__(NAME, port, timeout=30, context=ssl.create_default_context(cafile=str(trusted)))

    def connect(self) -> None:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.sock = self._context.wrap_socket(raw, server_hostname=NAME)  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=[caddy, nginx], ids=["caddy", "nginx"])
def proxy(request: pytest.FixtureRequest, behind: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a proxy, and whom to trust."""
    name = request.param.__name__
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed (Debian: {name})")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    folder = tmp_path_factory.mktemp(name)
    command, trusted = request.param(folder, port, behind.port)
    said = (folder / "said").open("w")
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"}
    )

    def answers() -> bool:
        assert process.poll() is None, (folder / "said").read_text()[-2000:]
        try:
            return ask(port, trusted, "GET", "/health")[0] == 200
        except OSError:
            return False

    try:
        until(answers)
        yield port, trusted
    finally:
        process.terminate()
        process.wait(20)
        said.close()


def ask(port: int, trusted: Path, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = Connection(port, trusted)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), WITH_KEY | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


BODY = {"prompt": "Once", "max_tokens": 100, "stream": True}


def test_a_stream_comes_as_it_is_written(proxy: tuple[int, Path]) -> None:
    connection = Connection(*proxy)
    connection.request("POST", "/v1/completions", json.dumps(BODY), WITH_KEY)
    answer, times, text = connection.getresponse(), list[float](), ""
    while line := answer.readline():
        if line.startswith(b"data: {"):
            times.append(time.monotonic())
            text += json.loads(line[6:])["choices"][0]["text"]
    connection.close()
    assert text == "A piece" * PIECES
    # In lumps there would be one long wait and many of nothing.
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gap > PAUSE / 2 for gap in gaps) > PIECES / 2


def test_a_client_that_goes_behind_a_proxy(proxy: tuple[int, Path]) -> None:
    connection = Connection(*proxy)
    connection.request("POST", "/v1/completions", json.dumps({**BODY, "max_tokens": 400}), WITH_KEY)
    assert connection.getresponse().readline().startswith(b"data: {")
    assert connection.sock is not None
    connection.sock.close()
    connection.close()
    until(lambda: WORKERS[-1].told[-1].cancelled)


def test_who_may_ask_behind_a_proxy(proxy: tuple[int, Path]) -> None:
    body = {"prompt": "Once", "max_tokens": 100}
    assert ask(*proxy, "GET", "/")[0] == 200
    assert ask(*proxy, "POST", "/v1/completions", body, Origin=f"https://{NAME}")[0] == 200
    assert ask(*proxy, "POST", "/v1/completions", body, Origin="https://evil.example")[0] == 403
    assert ask(*proxy, "POST", "/v1/completions", body, Authorization="Bearer wrong-key-of-a-test")[0] == 401
    assert ask(*proxy, "POST", "/v1/completions", {"prompt": "a" * (5 << 20)})[0] == 413
