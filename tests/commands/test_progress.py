"""What a command shows on a terminal while it works, and that nothing of it stays; looked at through tmux."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..model.chat_models import reciting_model
from ..screen import BITNET, Screen, needs_tmux

pytestmark = needs_tmux

BARS = """
import sys, time
from bitnet_cli.commands.reporting import Bar, Reporter

def shown(bar, done, total):
    with bar:
        for i in range(done):
            bar.update(i, total)
        sys.stdin.readline()
        bar.update(total, total)

print("before", file=sys.stderr)
shown(Bar("compiling the kernels (avx512vnni)", "functions", patience=0), 30, None)
shown(Bar("reading the prompt", "tokens", patience=0), 30, 90)
shown(Bar("converting", "bytes", patience=0), 30, 90)
with Reporter(False).working("loading a-model-with-a-long-name.gguf"):
    sys.stdin.readline()
print("after", file=sys.stderr)
"""


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    screens = []

    def make(*command: str, **options: Any) -> Screen:
        screens.append(Screen(command, tmp_path, **options))
        return screens[-1]

    yield make
    for one in screens:
        one.close()


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_bars_fit_and_go_away(columns: int, screen: Callable[..., Screen], tmp_path: Path) -> None:
    """Numbers are there at every width, in one line; when all is done, nothing is left."""
    (tmp_path / "bars.py").write_text(BARS)
    terminal = screen("sh", "-c", f"stty -echo; {shlex.quote(sys.executable)} bars.py", columns=columns)
    wide = columns == 80
    for name, numbers in (
        ("compiling", "29 functions 0:00:0" if wide else "0:00:0"),
        ("reading", "29 of 90 tokens" if wide else "32 %"),
        ("converting", "29/90 bytes" if wide else "32 %"),
        ("loading", "0:00:0"),
    ):
        text = terminal.wait(lambda text, name=name, numbers=numbers: name in text and numbers in text)
        assert text.startswith("before\n")
        assert len(text.strip().splitlines()) == 2
        terminal.keys("Enter")
        terminal.wait(lambda text, name=name: name not in text)
    assert terminal.wait("left with").split() == ["before", "after", "left", "with", "0"]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_no_bars_where_the_cursor_cannot_move(term: str, screen: Callable[..., Screen], tmp_path: Path) -> None:
    """TERM=dumb, and no TERM at all: a long prompt is read, and not one escape sequence is written."""
    model = reciting_model(tmp_path / "model.gguf", "The end. ")
    command = shlex.join([*BITNET, "run", str(model), "-p", "x" * 3000, "-c", "4096", "--temp", "0", "--raw"])
    terminal = screen("script", "-qc", command, "log", TERM=term)
    terminal.wait("left with 0")
    log = (tmp_path / "log").read_bytes()
    assert b"The end." in log
    assert b"\x1b" not in log


def test_a_bar_leaves_the_prompt_alone(screen: Callable[..., Screen], tmp_path: Path) -> None:
    """The prompt is shown with the text that follows it: before, a bar took its last line away."""
    model = reciting_model(tmp_path / "model.gguf", "The end. ")
    prompt = " ".join(f"{i}" for i in range(400))
    arguments = ["bitnet", "run", str(model), "-p", prompt, "--temp", "0", "--raw"]
    patient = "import sys; from bitnet_cli.commands import reporting; from bitnet_cli.cli import main; reporting.PATIENCE = 0"
    terminal = screen(sys.executable, "-c", f"{patient}; sys.argv = {arguments}; main()")
    text = terminal.wait("left with 0")
    assert f"{prompt}The end." in text.replace("\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_leaves_the_terminal_as_it_was(screen: Callable[..., Screen], tmp_path: Path) -> None:
    """During an answer, which is not echoed into, and while a message is typed."""
    model = reciting_model(tmp_path / "model.gguf", " ".join(f"w{i}" for i in range(300)) + " ", context=1 << 16, endless=True)
    chat = f"sh -c 'echo $$ > pid; exec {shlex.join([*BITNET, 'run', str(model), '--temp', '0', '-c', '65536'])}'"
    script = f"stty -a > before; {chat}; echo $? > one; stty -a > after; echo second; {chat}; echo $? > two; stty -a > again"
    terminal = screen("sh", "-c", script)
    terminal.wait(">>> ")
    terminal.line("hello")
    terminal.wait("w60 ")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    terminal.wait(lambda text: ">>> S" in text.partition("second\n")[2])  # the first chat's prompt is on the screen as well
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    terminal.wait("left with 0")
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["143\n", "143\n"]
    before = (tmp_path / "before").read_text()
    assert [(tmp_path / name).read_text() for name in ("after", "again")] == [before, before]
