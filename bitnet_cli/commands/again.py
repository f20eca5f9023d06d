"""The same command once more with the kernels that every CPU runs, where those for this CPU compute wrongly (model/self_test.py).

A process has one set of kernels, and code and layouts follow it; so another set is another process in the place of this one (exec), before
which nothing has been written to stdout. What was read from stdin it finds there again.
"""

import os
import sys
import tempfile

from bitnet_cli.commands.reporting import say
from bitnet_cli.errors import PORTABLE, WrongKernelsError

_taken: list[bytes] = []  # from stdin


def take(size: int) -> bytes:
    """At most so many bytes of stdin, or all that there are."""
    data = sys.stdin.buffer.read(size)
    _taken.append(data)
    return data


def start_again(error: WrongKernelsError) -> None:
    """Do not return, where the command can start again: by exec, as a program of its own, and not with the portable set already."""
    program, words = _command()
    if os.name != "posix" or error.kernels == PORTABLE or not program:
        return
    say(f"bitnet: warning: {error.without_advice}; starting again with BITNET_ISA={PORTABLE}, which is slower")
    if _taken:
        with tempfile.TemporaryFile() as file:
            file.write(b"".join(_taken))
            file.seek(0)
            os.dup2(file.fileno(), 0)
    sys.stdout.flush()
    os.execve(program, [program, *words], {**os.environ, "BITNET_ISA": PORTABLE})


def _command() -> tuple[str, list[str]]:
    """What this process was started as; nothing where that cannot be known, or the command is a part of another program."""
    words = sys.argv[1:]
    if getattr(sys, "frozen", False):
        return sys.executable, words
    given = sys.orig_argv[1:]
    return (sys.executable, given) if given[len(given) - len(words) :] == words else ("", [])
