"""What the terminal of this process can, and whether it echoes what is typed."""

import contextlib
import os
import sys
from collections.abc import Iterator

NARROW = 64  # columns, under which a progress bar is a name and a percentage


def dumb() -> bool:
    """Whether the terminal only writes lines: no moving of the cursor, no colours."""
    return os.environ.get("TERM") in ("dumb", "unknown")


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """What is typed meanwhile is not echoed, and waits."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
