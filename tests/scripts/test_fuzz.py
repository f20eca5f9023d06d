"""scripts/fuzz.py: what it calls right and wrong, and a few hundred damaged files of a fixed seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def python(repo_root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=repo_root / "scripts")


def test_attempt(repo_root: Path) -> None:
    words = {
        "pass": "run",
        "raise fuzz.BitnetError('m.gguf: no')": "refused",
        "raise fuzz.BitnetError('x' * 3000)": "a message that is not one line: ",
        "1 / 0": "ZeroDivisionError in <string>:check: division by zero",
        "os.kill(os.getpid(), 11)": "signal SIGSEGV",
        "bytearray(1 << 40)": "MemoryError in <string>:check: ",
    }
    lines = ["import fuzz, os, pathlib"]
    for body in words:
        lines += ["def check(folder):", f"    {body}", "print(fuzz.attempt(check, pathlib.Path()))"]
    done = python(repo_root, "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == len(words)
    assert all(got.startswith(word) if word.endswith(": ") else got == word for got, word in zip(found, words.values(), strict=True))


@pytest.mark.slow
def test_damaged_files_are_run_or_refused(repo_root: Path, tmp_path: Path) -> None:
    done = python(repo_root, "fuzz.py", "--cases", "200", "--only", "gguf", "folder", "chat", "cache", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gguf refused" in done.stdout and "folder run" in done.stdout
    assert list(tmp_path.iterdir()) == []
