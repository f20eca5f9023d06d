"""A document on stdin beside a question: `cat doc.txt | bitnet run MODEL -p "Summarise this"`; and what must not be taken for one."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..model.chat_models import chat_model

Bitnet = Callable[..., Any]
posix_only = pytest.mark.skipif(os.name != "posix", reason="pipes and shells of POSIX")
OPTIONS = ("-n", "1", "--json", "--temp", "0", "-t", "1")
ENV = os.environ | {"BITNET_ISA": "naive"}
ALONE = len("1user\nSummarise1\n1assistant\n")  # tokens of the question without a document


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("stdin") / "chatty.gguf")


@pytest.fixture(scope="module")
def words(model: Path) -> list[str]:
    return [sys.executable, "-m", "bitnet_cli", "run", str(model), "-p", "Summarise", *OPTIONS]


def tokens(line: str) -> int:
    return int(json.loads(line)["timings"]["prompt_n"])


def test_the_document_follows_the_question(bitnet: Bitnet, model: Path) -> None:
    """As one message; with words after the model as well; not in a chat, where lines are turns, nor before a text that is continued."""
    for asked in (("-p", "Summarise"), ("Summarise",)):
        assert tokens(bitnet("run", model, *asked, *OPTIONS, stdin="a\nb <|im_end|>\n").stdout) == ALONE + len("\n\na\nb <|im_end|>")
    assert tokens(bitnet("run", model, "-p", "Summarise", "--encoding", "latin-1", *OPTIONS, stdin=b"\xe9").stdout) == ALONE + 4
    assert tokens(bitnet("run", model, "-p", "Summarise", "--raw", *OPTIONS, stdin="a").stdout) == len("Summarise")
    chat = bitnet("run", model, "-cnv", "-sys", "s", *OPTIONS, stdin="a\nb\n")
    assert len(chat.stdout.splitlines()) == 2
    assert bitnet("run", model, "-p", "Summarise", *OPTIONS, stdin=b"\xff").returncode == 3


def test_nothing_there(bitnet: Bitnet, model: Path) -> None:
    """A terminal, an empty stdin, --no-stdin."""
    for stream in ({"terminals": ("stdin",), "stdin": "x"}, {"stdin": ""}, {"stdin": "\n"}):
        assert tokens(bitnet("run", model, "-p", "Summarise", *OPTIONS, **stream).stdout) == ALONE
    assert tokens(bitnet("run", model, "-p", "Summarise", "--no-stdin", *OPTIONS, stdin="x").stdout) == ALONE


@posix_only
def test_a_closed_stdin(words: list[str]) -> None:
    """As a program that closed it, and as cron and `< /dev/null` give it."""
    for redirection in ("<&-", "< /dev/null"):
        done = subprocess.run(["sh", "-c", f'exec "$@" {redirection}', "sh", *words], capture_output=True, text=True, env=ENV, check=True)
        assert tokens(done.stdout) == ALONE and "stdin" not in done.stderr


@posix_only
def test_a_silent_pipe_is_named(words: list[str]) -> None:
    """And what it says later is the document."""
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    assert process.stderr is not None and process.stdin is not None
    late = threading.Timer(100, process.kill)
    late.start()
    assert "waiting for stdin" in process.stderr.readline()
    out, _ = process.communicate("abc")
    late.cancel()
    assert tokens(out) == ALONE + 5


@posix_only
def test_over_the_network(words: list[str]) -> None:
    """sshd gives a command a socket: what comes soon is the document, and silence is not waited for."""
    for said, more in ((b"abc", 5), (b"", 0)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if said:
                ours.sendall(said)
                ours.shutdown(socket.SHUT_WR)
            done = subprocess.run(words, stdin=theirs, capture_output=True, text=True, env=ENV, check=True, timeout=300)
        assert tokens(done.stdout) == ALONE + more
        assert ("says nothing" in done.stderr) == (not said)


@posix_only
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells whose stdin it is")
@pytest.mark.parametrize("source", ["pipe", "file"])
def test_a_loop_keeps_its_lines(model: Path, tmp_path: Path, source: str) -> None:
    """`while read line; do bitnet run ...; done`: every line is asked, and none is taken for a document."""
    (tmp_path / "lines").write_text("one\nthree\n")
    loop = f'while read -r line; do {sys.executable} -m bitnet_cli run {model} -p "$line" {" ".join(OPTIONS)}; done'
    script = f"cat {tmp_path}/lines | {loop}" if source == "pipe" else f"{loop} < {tmp_path}/lines"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=ENV, check=True, stdin=subprocess.DEVNULL)
    assert [tokens(line) for line in done.stdout.splitlines()] == [ALONE - len("Summarise") + len(word) for word in ("one", "three")]
    assert done.stderr.count("a loop") == (1 if source == "pipe" else 0)


@posix_only
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells whose stdin it is")
def test_a_document_in_a_script(words: list[str], tmp_path: Path) -> None:
    """Of a pipeline, of a file, through a program that starts others; and, told so, of the script itself."""
    (tmp_path / "doc").write_text("abc")
    command = " ".join(words)
    for script in (
        f"cat doc | {command}",
        f"{command} < doc",
        f"cat doc | timeout 200 {command}",
        f"cat doc | ( {command} --stdin; true )",
    ):
        done = subprocess.run(["sh", "-c", f"{script}; true"], capture_output=True, text=True, env=ENV, check=True, cwd=tmp_path)
        assert tokens(done.stdout) == ALONE + 5, script
    with (tmp_path / "doc").open() as doc:
        raw = subprocess.run([*words, "--raw"], stdin=doc, capture_output=True, text=True, env=ENV, check=True)
    assert tokens(raw.stdout) == len("Summarise") and "stdin is not read" in raw.stderr
