"""`bitnet batch --ray`: every request has one answer, whichever process of Ray's dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ..command import bitnet
from .test_batch import HI, lines, request, written

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")]


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
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
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
