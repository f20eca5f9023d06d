"""Every error a user can meet, and the exit code that the command line gives it.

    BitnetError            1   something failed at run time
    ├── WrongKernelsError  1   the kernels compute wrongly on this machine
    ├── UsageError         2   the command line asks for something impossible
    ├── BadFileError       3   a file is damaged, forged or inconsistent
    └── UnsupportedError   4   a known thing that this version does not handle

Messages are one line. File errors name the file, the field and what was expected. What is asked for is named as the caller names it:
`option` gives a parameter of the Python API, or the option of the command line.
"""

import os
from contextvars import ContextVar

COMMAND_LINE = ContextVar("bitnet_command_line", default=False)  # whether it is the command line that asks
OPTIONS = {"context": "-c", "threads": "-t", "max_tokens": "-n", "temperature": "--temp", "template": "--chat-template"}


PORTABLE = "portable"  # the set of instructions that every CPU has


def option(parameter: str) -> str:
    """What a message calls a parameter: `temperature` in Python, `--temp` on the command line."""
    return OPTIONS.get(parameter, "--" + parameter.replace("_", "-")) if COMMAND_LINE.get() else parameter


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters escaped, so that a name from a file cannot drive the terminal; those in `keep` stay.

    Not printable are for Python C0 and C1, DEL, line and paragraph separators, half surrogates, and all invisible format characters, among
    them those that change the direction of what follows. What is escaped once is not escaped again.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class BitnetError(Exception):
    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class WrongKernelsError(BitnetError):
    """What a model would write is not what it should. kernels: the name of an instruction set; what: where it was noticed."""

    def __init__(self, kernels: str, what: str):
        self.kernels = kernels
        self.without_advice = f"the kernels for {kernels} compute wrongly on this machine (their self-test: {what})"
        super().__init__(self.without_advice + ("" if kernels == PORTABLE else f"; BITNET_ISA={PORTABLE} may be right"))


class UsageError(BitnetError):
    exit_code = 2


class BadFileError(BitnetError):
    """`path: field: reason (byte offset)`."""

    exit_code = 3

    def __init__(self, path: str | os.PathLike[str], field: str, reason: str, offset: int | None = None):
        self.path, self.field, self.reason, self.offset = os.fspath(path), field, reason, offset
        place = "" if offset is None else f" (byte {offset})"
        super().__init__(f"{self.path}: {field}: {reason}{place}")


class UnsupportedError(BitnetError):
    exit_code = 4


def unreadable(path: str | os.PathLike[str], error: Exception) -> BitnetError:
    """The error for a file that was named and could not be opened: UsageError where there is none of that name, else BadFileError."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
        return UsageError(f"{os.fspath(path)}: {reason}")
    return BadFileError(path, "file", reason)
