"""A terminal to look at: tmux, driven by keys. Screens are compared as text, after waiting for what they must show."""

import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

PATIENCE = 120.0  # seconds: a machine that is busy, not a measurement


BITNET = (sys.executable, "-m", "bitnet_cli")


class Screen:
    """One window of a tmux server of its own, in which a command runs in `folder`."""

    def __init__(self, command: Sequence[str], folder: Path, *, columns: int = 80, lines: int = 24, **environment: str):
        self._socket, self._columns, self.folder = f"bitnet-{uuid.uuid4().hex[:8]}", columns, folder
        values = {"BITNET_ISA": "naive", "XDG_STATE_HOME": str(folder), "LANG": "C.UTF-8", "TERM": "screen-256color"} | environment
        given = [f"{name}={value}" for name, value in values.items()]
        # Not an interactive shell: it would report, and leave, a program that is paused from outside.
        script = "trap : INT; " + shlex.join(["env", "-u", "NO_COLOR", *given, *command]) + "; echo left with $?; exec cat"
        size = ["-x", str(columns), "-y", str(lines)]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "x", *size, "-c", str(folder), script)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(["tmux", "-L", self._socket, *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Names of keys (`Enter`, `C-c`), or text."""
        self._tmux("send-keys", "-t", "x", *keys)

    def line(self, text: str) -> None:
        """Text and Enter."""
        self._tmux("send-keys", "-t", "x", "-l", text)
        self.keys("Enter")

    def resize(self, columns: int, lines: int = 24) -> None:
        self._tmux("resize-window", "-t", "x", "-x", str(columns), "-y", str(lines))

    def text(self, *, styles: bool = False) -> str:
        """All that was printed, scrollback included, lines that the terminal broke joined again."""
        return self._tmux("capture-pane", "-p", "-t", "x", "-S", "-", *(["-e"] if styles else ["-J"]))

    def wait(self, shows: str | Callable[[str], bool]) -> str:
        """Wait until the screen has a text, or fulfils something; returns it."""
        good = shows if callable(shows) else lambda text: shows in text
        end = time.monotonic() + PATIENCE
        while not good(text := self.text()):
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return text

    def prompted(self) -> None:
        """Wait until the program reads keys one by one. Until then the terminal itself takes Ctrl-R, Ctrl-D and the like."""
        import termios  # not on Windows, nor is tmux

        with Path(self._tmux("display-message", "-p", "-t", "x", "#{pane_tty}").strip()).open("rb", buffering=0) as terminal:
            end = time.monotonic() + PATIENCE
            while termios.tcgetattr(terminal)[3] & termios.ICANON:
                assert time.monotonic() < end, self.text()
                time.sleep(0.05)

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)


needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
