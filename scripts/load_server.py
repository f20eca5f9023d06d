"""Clients that ask a server all at once: tokens/s, time to the first token, the longest stall, and what the clients take themselves.

    python scripts/load_server.py --shape 2B-4T --clients 1,2,4,8,16 --seconds 60
    python scripts/load_server.py -m MODEL --requests 10000 --clients 8 -n 8      a soak: all answers come, memory stays

Starts `bitnet serve` on a port of its own (random weights of a shape: synthetic_model.py), and as many clients as are asked for, each of
which asks again as soon as it has its answer. Prompts differ, in lengths too. --url measures any server with OpenAI's completions. Needs
the extra `serve`.
"""

import argparse
import http.client
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he", "his", "but")


class Client(threading.Thread):
    """Asks until it is told to end. gaps: seconds between pieces of an answer; first: seconds to the first one, of each answer."""

    def __init__(self, url: str, name: int, options: argparse.Namespace, left: threading.Semaphore | None):
        super().__init__(daemon=True)
        self._host, self._name, self._options, self._left = urlsplit(url).netloc, name, options, left
        self.ended, self.tokens, self.answers, self.wrong = False, 0, 0, list[str]()
        self.first, self.gaps = list[float](), list[float]()

    def run(self) -> None:
        rng = random.Random(self._name)
        connection = http.client.HTTPConnection(self._host, timeout=600)
        while not self.ended and (self._left is None or self._left.acquire(blocking=False)):
            try:
                self._ask(connection, rng)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.wrong.append(repr(error))
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection, rng: random.Random) -> None:
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(*self._options.prompt)))
        body = {"model": "m", "prompt": prompt, "max_tokens": self._options.n, "temperature": 0, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        start = last = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {answer.read(200)!r}")
        begun, written = False, 0
        while line := answer.readline():
            if not line.startswith(b"data: {"):
                continue
            piece, now = json.loads(line[6:]), time.perf_counter()
            if piece.get("usage"):
                written = piece["usage"]["completion_tokens"]
            elif piece["choices"]:
                (self.gaps if begun else self.first).append(now - last)
                begun, last = True, now
        if written != self._options.n:
            raise ValueError(f"{written} tokens after {time.perf_counter() - start:.1f} s, expected {self._options.n}")
        self.tokens += written
        self.answers += 1


def share_of(values: list[float], part: float) -> float:
    """The value below which that part of all lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def resident(process: subprocess.Popen[bytes] | None) -> float:
    """MiB of memory that the server holds; 0 where that cannot be told."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text() if process else ""
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def measure(url: str, count: int, options: argparse.Namespace, server: subprocess.Popen[bytes] | None) -> bool:
    """Print one row; False where an answer was missing or cut."""
    left = threading.Semaphore(options.requests) if options.requests else None
    clients = [Client(url, number, options, left) for number in range(count)]
    before, start, memory = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), resident(server)
    for client in clients:
        client.start()
    if left is None:
        time.sleep(options.seconds)
        for client in clients:
            client.ended = True
    for client in clients:
        client.join()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    own = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds
    first, gaps = [v for c in clients for v in c.first], [v for c in clients for v in c.gaps]
    wrong = [text for client in clients for text in client.wrong]
    row = [
        f"{sum(c.tokens for c in clients) / seconds:.1f}",
        f"{share_of(first, 0.5) * 1e3:.0f}",
        f"{share_of(first, 0.95) * 1e3:.0f}",
        f"{share_of(gaps, 0.5) * 1e3:.1f}",
        f"{max(gaps, default=0) * 1e3:.0f}",
        f"{own:.0%}",
        f"{sum(c.answers for c in clients)}",
        f"{len(wrong)}",
        f"{memory:.0f} -> {resident(server):.0f}",
    ]
    print(f"| {count} | {' | '.join(row)} |", flush=True)
    for text in wrong[:3]:
        print(text, file=sys.stderr)
    return not wrong


def started(model: str, port: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A server that answers."""
    command = [
        sys.executable,
        "-m",
        "bitnet_cli",
        "serve",
        model,
        "--port",
        str(port),
        "-np",
        str(max(options.clients)),
        "-c",
        str(options.c),
    ]
    server = subprocess.Popen([*command, *(["-t", str(options.t)] if options.t else []), "--log-level", "error"])
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return server
        except OSError:
            pass
        if server.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", default="tiny", help="a model file or name")
    parser.add_argument("--shape", help="random weights of this shape in place of -m")
    parser.add_argument("--url", help="a server that is running, in place of one of our own")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=0, help="so many answers for each number of clients, instead of seconds")
    parser.add_argument(
        "--prompt", type=lambda text: [int(part) for part in text.split(",")], default=[20, 120], help="words, least and most"
    )
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer")
    parser.add_argument("-c", type=int, default=512)
    parser.add_argument("-t", type=int, default=0)
    parser.add_argument("--port", type=int, default=8099)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, server = options.m, None
        if options.shape:
            model = str(Path(folder) / "m.gguf")
            subprocess.run(
                [sys.executable, Path(__file__).with_name("synthetic_model.py"), options.shape, model, "--vocabulary"], check=True
            )
        if options.url is None:
            server = started(model, options.port, options)
        print("| clients | tokens/s | first, p50 ms | p95 | gap, p50 ms | longest | clients' CPU | answers | wrong | server, MiB |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        try:
            right = [measure(options.url or f"http://127.0.0.1:{options.port}", count, options, server) for count in options.clients]
        finally:
            if server is not None:
                server.terminate()
                server.wait(60)
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
