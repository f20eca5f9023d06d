"""The clients that measure a server: every answer is counted, and what is wrong with one is seen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "load_server.py"


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_all_answers_come() -> None:
    done = load("--clients", "1,3", "--requests", "7", "-n", "5", "-t", "1", "--port", "8177")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|.*\| (\d+) \| (\d+) \| \d+ -> \d+ \|$", done.stdout, re.M)
    assert [(count, answers, wrong) for count, _, answers, wrong in rows] == [("1", "7", "0"), ("3", "7", "0")]
    assert all(float(rate) > 1 for _, rate, _, _ in rows)


def test_no_server() -> None:
    """Nobody listens at port 9, so no answer comes, and that is said."""
    done = load("--url", "http://127.0.0.1:9", "--clients", "2", "--requests", "3")
    assert done.returncode == 1
    assert "| 0 | 3 |" in done.stdout and "ConnectionRefusedError" in done.stderr
