"""What a chat needs of a terminal, or does without: plain output, Ctrl-C during an answer, width."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from ctypes import c_uint32
from types import FrameType
from typing import Any, Protocol

from bitnet_cli.machine.terminal import dumb, unechoed
from bitnet_cli.text.stream import terminal_safe

STDOUT, VIRTUAL_TERMINAL = -11, 4  # STD_OUTPUT_HANDLE and ENABLE_VIRTUAL_TERMINAL_PROCESSING of Windows' console functions


class Shown(Protocol):
    """Where an answer goes."""

    def push(self, text: str) -> None:
        """Show what has come."""

    def finish(self) -> None:
        """Show the rest and end the line."""


class Plain:
    """Text as it comes; without control characters on a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()

    def push(self, text: str) -> None:
        """As in `Shown`."""
        sys.stdout.write(terminal_safe(text) if self._terminal else text)
        sys.stdout.flush()

    def finish(self) -> None:
        """As in `Shown`."""
        sys.stdout.write("\n")
        sys.stdout.flush()


class Silent:
    """Nothing: the answer is printed whole, as JSON."""

    def push(self, text: str) -> None:
        """As in `Shown`."""

    def finish(self) -> None:
        """As in `Shown`."""


class Stop:
    """What Ctrl-C does during an answer. softly: it asks to stop after this token; else it interrupts at once. A second one always does."""

    softly = wanted = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self.softly or self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C stops the answer; what is typed meanwhile is not echoed into it, and waits for the prompt."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop)
    try:
        with unechoed():
            yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def moves(system: str = os.name, kernel32: Any = None) -> bool:
    """Whether the terminal of stdout understands escape sequences. A console of Windows does from Windows 10 on, if asked to."""
    if dumb():
        return False
    if system != "nt":
        return True
    if kernel32 is None:
        import ctypes

        kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
    output, mode = kernel32.GetStdHandle(STDOUT), (c_uint32 * 1)()
    return bool(kernel32.GetConsoleMode(output, mode) and kernel32.SetConsoleMode(output, mode[0] | VIRTUAL_TERMINAL))


def wrapped(line: str) -> str:
    """A line broken between words where stderr is a terminal; what continues a row of a list stands below its second column."""
    if not sys.stderr.isatty():
        return line
    columns = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
    indent = len(line) - len(line.split("  ", 1)[1].lstrip()) if "  " in line.rstrip() else 0
    folded = textwrap.wrap(line, max(columns, 20), subsequent_indent=" " * min(indent, 20), drop_whitespace=True, break_on_hyphens=False)
    return "\n".join(folded) or line


def styled(terminal: bool) -> bool:
    """Whether colours and the like may be used."""
    return terminal and not dumb() and not os.environ.get("NO_COLOR")
