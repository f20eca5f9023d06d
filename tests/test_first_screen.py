"""README.md as a stranger reads it: a HOME in which nothing is, an empty folder, and its commands typed one after the other.

What needs the hub says so in one line, as there is no network here; what names a file that a stranger does not have, too.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bitnet_kernels import isa

from bitnet_cli.commands.run import INTRODUCTION
from bitnet_cli.embedded import DEFAULT_MODEL

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()]
COMMANDS = [re.sub(r"\s+# .*", "", line) for line in LINES if re.search(r"^(cat \S+ \| )?bitnet ", line)]
NEEDS_HUB, NEEDS_FILE = "microsoft/", r"model\.gguf|text\.txt|doc\.txt|path/to"
KEPT = {".cache", ".local", ".config"}  # what a program may make in a HOME
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="command lines for a POSIX shell")]
Type = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture
def type_in(home: Path, tmp_path: Path) -> Type:
    """A command line typed into a shell that knows nothing of whoever runs the tests; kernels may be compiled already if they say where."""
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
    env = {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1"}

    def run(line: str, compiled: bool = True) -> "subprocess.CompletedProcess[str]":
        known = {name: os.environ[name] for name in ("BITNET_CACHE_DIR",) if compiled and name in os.environ}
        return subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env=env | known,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


def test_the_first_command(type_in: Type, home: Path, tmp_path: Path) -> None:
    """It says that it compiles kernels, and leaves nothing else behind. On a CPU as there, the text is the one that the page shows."""
    command = next(line for line in LINES if "bin/bitnet run" in line).rpartition(".venv/bin/")[2]
    done = type_in(command, compiled=False)
    assert done.returncode == 0 and "compiling the kernels" in done.stderr, done.stderr
    if isa.chosen() == "avx512vnni":
        shown = re.findall(r"^```text\n(.*?)^```$", README, re.M | re.S)[0]
        assert ("And the king said" + done.stdout).split() == shown.split()
    assert list(tmp_path.iterdir()) == [] and {path.name for path in home.iterdir()} <= KEPT
    again = type_in(command, compiled=False)
    assert again.stdout == done.stdout and "compiling" not in again.stderr


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command(line: str, type_in: Type, tmp_path: Path) -> None:
    done = type_in(line)
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    if re.search(f"{NEEDS_HUB}|{NEEDS_FILE}", line):
        errors = [text for text in done.stderr.splitlines() if text.startswith("bitnet: error: ")]
        assert (done.returncode, done.stdout, len(errors)) == (2, "", 1), done.stderr
        assert re.search("bitnet pull microsoft/" if NEEDS_HUB in line else "No such file|no such", errors[0]), errors
    else:
        assert done.returncode == 0 and done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_three_things_to_try(type_in: Type) -> None:
    """That the program names when it is started alone on a terminal."""
    lines = [line for line in INTRODUCTION.format(name=DEFAULT_MODEL, about="", given="").splitlines() if line.startswith("  bitnet ")]
    assert len(lines) == 3
    for line in lines:
        done = type_in(line)
        assert done.returncode == 0 and done.stdout.strip(), (line, done.stderr)


def test_the_python_example(home: Path, type_in: Type) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    ast.parse(block)
    done = type_in(shlex.join([sys.executable, "-c", block]))
    assert done.returncode == 0 and len(done.stdout) > 20, done.stderr


def test_the_changelog_leads_with_what_changes_for_whoever_upgrades() -> None:
    text = (Path(__file__).resolve().parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    first = text.partition("## [Unreleased]\n\n")[2].partition("\n### ")[0]
    assert first.startswith("**`bitnet run -p` asks.**") and "`--raw`" in first and "`BITNET_RAW=1`" in first
