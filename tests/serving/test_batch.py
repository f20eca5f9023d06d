"""`bitnet batch`: every request has one answer, however often the run is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..command import bitnet


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    return path


def request(name: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


HI = [{"role": "user", "content": "Hi"}]


def test_kinds_of_requests(tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl",
        [
            request("chat", "/v1/chat/completions", messages=HI, max_tokens=3, seed=1),
            request("text", "/v1/completions", prompt="Once", max_tokens=3, temperature=0),
            request("response", "/v1/responses", input="Hi", max_output_tokens=3),
            request("message", "/v1/messages", messages=HI, max_tokens=3),
            request("vector", "/v1/embeddings", input="Hi", pooling="mean"),
            request("wrong", "/v1/completions", prompt="Once", temperature=-1),
            request("nowhere", "/v1/images", prompt="Once"),
        ],
    )
    target = tmp_path / "out.jsonl"
    done = bitnet("batch", source, target, "-t", "1")
    assert done.returncode == 1 and "2 of 7 requests failed" in done.stderr
    found = {line["custom_id"]: line["response"] for line in lines(target)}
    assert {name: one["status_code"] for name, one in found.items()} == {
        "chat": 200, "text": 200, "response": 200, "message": 200, "vector": 200, "wrong": 400, "nowhere": 404}  # fmt: skip
    alone = bitnet("run", "tiny", "-p", "Once", "-n", "3", "--temp", "0", "-q", "--json", "-t", "1", check=True)
    assert found["text"]["body"]["choices"][0]["text"] in json.loads(alone.stdout)["text"]
    before = target.read_bytes()
    assert bitnet("batch", source, target, "-t", "1").returncode == 0
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"url": "/v1/completions", "body": {}}', "custom_id"),
        ('{"custom_id": "a", "url": "/v1/completions"}', "body"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' * 2, "was there before"),
    ],
)
def test_files_that_are_none(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "in.jsonl").write_text(line)
    done = bitnet("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert done.returncode == 3 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_target_is_looked_at(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [request("a", "/v1/completions", prompt="x", max_tokens=1)])
    assert bitnet("batch", source, source).returncode == 2
    (tmp_path / "other").write_text("A letter to somebody\n")
    assert bitnet("batch", source, tmp_path / "other").returncode == 3
    assert (tmp_path / "other").read_text() == "A letter to somebody\n"
    assert bitnet("batch", tmp_path / "none", tmp_path / "out").returncode == 2


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    source = written(tmp_path / "in.jsonl", [request("a", "/v1/completions", prompt="x", max_tokens=1)])
    done = bitnet("batch", source, tmp_path / "out.jsonl", "--ray")
    assert done.returncode == 2 and "batch needs ray: pip install 'ray[data,serve]'" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_run_that_is_killed_twice(tmp_path: Path) -> None:
    count, chance = 2000, random.Random(5)
    requests = [request(f"r{i}", "/v1/completions", prompt=f"Number {i}", max_tokens=2, temperature=0) for i in range(count)]
    source, target = written(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bitnet_cli", "batch", str(source), str(target), "-t", "1", "-q"]
    for part in (0.2, 0.6):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while not target.exists() or target.read_bytes().count(b"\n") < part * count:
            assert process.poll() is None
            time.sleep(0.01 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    with target.open("ab") as file:
        file.write(b'{"custom_id": "half')  # as a machine that loses power leaves it
    assert bitnet("batch", source, target, "-t", "1", "-q").returncode == 0
    found = lines(target)
    assert sorted(line["custom_id"] for line in found) == sorted(one["custom_id"] for one in requests)
    assert {line["response"]["status_code"] for line in found} == {200}
    again = tmp_path / "again.jsonl"
    assert bitnet("batch", source, again, "-t", "1", "-q").returncode == 0
    texts = [{line["custom_id"]: line["response"]["body"]["choices"] for line in lines(path)} for path in (target, again)]
    assert texts[0] == texts[1]
