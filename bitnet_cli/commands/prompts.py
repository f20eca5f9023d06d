"""What a command is given to read: a prompt, a document on stdin beside it, a schema. Bytes in, text out."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from bitnet_cli.commands.again import take
from bitnet_cli.commands.reporting import Reporter
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.model.constraint import grammar_of
from bitnet_cli.model.sampler import MOST_BIAS
from bitnet_cli.text.files import decode_text, require_encoding

MAX_PROMPT_BYTES = 64 << 20
SILENCE = 2.0  # seconds after which a pipe that says nothing is named
# A loop of one of these reads what its stdin has, line by line, and commands in it inherit that stdin.
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "ksh93", "mksh", "ash", "busybox", "fish")
_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_BIAS = re.compile(r"(\d{1,9})([+-](?:\d+(?:\.\d*)?|\.\d+|inf))")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\", "\\'": "'", '\\"': '"'}


def read_prompt(prompt: str | None, file: Path | None, encoding: str | None = None) -> str:
    """The prompt's text from -p, -f or a pipe; empty where there is none of them. encoding: of a file or pipe, as decode_text."""
    require_encoding(encoding)
    if prompt is not None and file is not None:
        raise UsageError("give the prompt by -p or by -f, not both")
    if file is not None:
        data = _read(file)
    elif prompt == "-" or (prompt is None and sys.stdin is not None and not sys.stdin.isatty()):
        data = take(MAX_PROMPT_BYTES + 1)
    else:
        return prompt or ""
    return _text(data, "stdin" if file is None else str(file), encoding)


def _text(data: bytes, source: str, encoding: str | None) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt is larger than {MAX_PROMPT_BYTES >> 20} MiB")
    # One line end at the end is the file's or the shell's, not the prompt's: `echo text | bitnet run` should continue the text.
    return decode_text(data, source, encoding=encoding).removesuffix("\n")


def _read(file: Path) -> bytes:
    """At most MAX_PROMPT_BYTES and one: the file may be a device without an end."""
    try:
        with file.open("rb") as source:
            return source.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def document(wanted: bool | None, encoding: str | None = None, quiet: bool = False) -> str:
    """The text on stdin that a question on the command line is about; empty where there is none.

    wanted: --stdin reads whatever is there, --no-stdin nothing; None: what was meant for this command, as far as that can be known. Not a
    terminal; not a stdin that a shell's loop reads as well (`while read line; do bitnet run ...`), of which the loop's next lines would
    be taken away. BadFileError: it is not text.
    """
    report = Reporter(quiet)
    if wanted is False or sys.stdin.isatty() or (wanted is None and not _ours(report)):
        return ""
    # A reader that waits looks like a program that hangs, so what it waits for is named.
    named = threading.Timer(SILENCE, report.note, ["waiting for stdin, a pipe that says nothing so far; --no-stdin does without"])
    named.daemon = True
    named.start()
    try:
        first = sys.stdin.buffer.read(1)
        named.cancel()
        return _text(first + sys.stdin.buffer.read(MAX_PROMPT_BYTES) if first else b"", "stdin", encoding)
    finally:
        named.cancel()


def _ours(report: Reporter) -> bool:
    """Whether stdin is for this command alone, and has an end to wait for."""
    try:
        descriptor = sys.stdin.fileno()
        kind = os.fstat(descriptor)
    except (OSError, ValueError):  # no file of the system's
        return True
    if stat.S_ISREG(kind.st_mode):
        return not os.lseek(descriptor, 0, os.SEEK_CUR)  # somebody has read its beginning: a loop
    if os.name == "nt" or not (stat.S_ISFIFO(kind.st_mode) or stat.S_ISSOCK(kind.st_mode)):
        return True
    if _is_a_shells(kind):
        if _has_bytes(descriptor):
            report.note("stdin is not read: the calling shell reads it too, as in a loop; --stdin takes it as the document")
        return False
    # A pipeline has no sockets, but a command that is called over the network has, and nobody may ever write to it.
    if stat.S_ISSOCK(kind.st_mode) and not select.select([descriptor], [], [], SILENCE)[0]:
        report.note("stdin says nothing, and is not waited for; --no-stdin saves the look, --stdin waits")
        return False
    return True


def is_there() -> bool:
    """Whether something waits on stdin that was meant for this command; what is not known is no."""
    try:
        descriptor = sys.stdin.fileno()
        kind = os.fstat(descriptor)
        if stat.S_ISREG(kind.st_mode):
            return kind.st_size > 0 == os.lseek(descriptor, 0, os.SEEK_CUR)
        return stat.S_ISFIFO(kind.st_mode) and not _is_a_shells(kind) and _has_bytes(descriptor)
    except (OSError, ValueError):
        return False


def _has_bytes(descriptor: int) -> bool:
    """Whether a pipe has something to read now."""
    try:
        import array
        import fcntl
        import termios
    except ImportError:  # Windows
        return False
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0] > 0


def _is_a_shells(kind: os.stat_result) -> bool:
    """Whether the calling process is a shell with the same stdin. Only Linux tells."""
    parent = Path("/proc") / str(os.getppid())
    try:
        theirs = (parent / "fd" / "0").stat()
        return (theirs.st_dev, theirs.st_ino) == (kind.st_dev, kind.st_ino) and (parent / "comm").read_text().strip() in SHELLS
    except OSError:
        return False


def read_grammar(schema: str | None, regex: str | None, *, stdin_is_free: bool) -> str | None:
    """The form of the text that --json-schema (a schema, a file with one, `-` for stdin, `json`) or --regex asks for.

    stdin_is_free: nothing else is read from it. UsageError: see grammar_of; or the file cannot be read.
    """
    if schema is None:
        return grammar_of(None, regex)
    if schema == "json":
        return grammar_of(True, regex)
    if schema.lstrip().startswith("{"):
        return grammar_of(schema, regex)
    if schema == "-" and not stdin_is_free:
        raise UsageError("--json-schema - reads the schema from stdin; give a prompt by -p or -f, and no -cnv")
    data = take(MAX_PROMPT_BYTES + 1) if schema == "-" else _read(Path(schema))
    try:
        text = decode_text(data, schema, "JSON schema", "utf-8", hint=False)  # RFC 8259, section 8.1
    except BadFileError as error:
        raise UsageError(str(error)) from None
    return grammar_of(text, regex)


def unescaped(text: str) -> str:
    r"""`text` with \n, \t, \r, \\, \', \" and \xHH replaced by what they stand for: a shell makes it hard to type a new line."""

    def meant(match: re.Match[str]) -> str:
        found = match[0]
        return chr(int(found[2:], 16)) if found[1] == "x" and len(found) == 4 else ESCAPES.get(found, found)

    return _ESCAPE.sub(meant, text)


def biases(words: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """What --logit-bias says, as llama.cpp writes it: a token's id, a sign, a number. UsageError: another form, or a token twice."""
    found: dict[int, float] = {}
    for word in words:
        match = _BIAS.fullmatch(word)
        if match is None or int(match[1]) in found:
            raise UsageError(f"--logit-bias {word}: expected a token's id, + or -, and a number, as 15+1.5 or 15-inf, once a token")
        found[int(match[1])] = min(max(float(match[2]), -MOST_BIAS), MOST_BIAS)
    return tuple(found.items())
