"""A model as the user names it -> an open model. On a terminal, what is not here yet is downloaded and converted after asking."""

import sys
from pathlib import Path

from bitnet_kernels import lost_pages
from bitnet_kernels.control import MAX_THREADS

from bitnet_cli.commands.compile_progress import compiling
from bitnet_cli.commands.reporting import Reporter, say
from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED
from bitnet_cli.errors import printable
from bitnet_cli.machine.terminal import unechoed
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model import opening
from bitnet_cli.model.names import NotHereError, find
from bitnet_cli.model.opening import OpenModel, Options

__all__ = ["OpenModel", "Options", "find_model", "open_model"]


def find_model(reference: str | None, consent: bool = False) -> Path:
    """The file of a model (see model/names.py). What is not here is downloaded or converted, with consent or after asking on a terminal."""
    path = _find(reference, consent)
    say_if_lost(path)
    return path


def say_if_lost(path: Path) -> None:
    """From now on the process ends with one line where the file, which is mapped, loses bytes that are read."""
    start = "\n" if sys.stderr.isatty() else ""
    lost_pages.announce(f"{start}bitnet: error: {printable(str(path))}: became shorter, or could not be read, while it was in use")


def _find(reference: str | None, consent: bool) -> Path:
    try:
        return find(reference)
    except NotHereError as missing:
        if not consent and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        from bitnet_cli.commands.pull import get

        lacking = missing
        return get(lacking, None if consent else lambda question: _ask(question, lacking))


def _ask(question: str, missing: NotHereError) -> None:
    """Return if the user says yes, which is what Enter says."""
    say(f"{question} [Y/n] ", end="")
    answer = ""
    try:
        answer = sys.stdin.readline()
    finally:
        if not answer:  # Ctrl-C, Ctrl-D: nobody has ended the line
            say("")
    if not answer or answer.strip().lower() not in ("", "y", "yes"):
        raise missing


def warn_of_threads(reporter: Reporter, threads: int) -> None:
    """Say so where more threads are asked for than can run at once."""
    cores = physical_cores()
    if cores < threads <= MAX_THREADS:  # even more are an error
        reporter.warn(f"-t {threads}: this process may use {cores} core{'s' * (cores > 1)}; more threads wait for each other")


def open_model(model: str | None, options: Options, quiet: bool) -> OpenModel:
    """Open a model (None: the embedded one) ready to run, and say on stderr what the user should know. Close its scheduler after use."""
    if model is None and not quiet:
        about = f"the embedded model {DEFAULT_MODEL} ({EMBEDDED[DEFAULT_MODEL].description})"
        say(f"bitnet: using {about}; choose another with -m MODEL")
    warn_of_threads(Reporter(quiet), options.threads)
    path = find_model(model)
    with unechoed(), Reporter(quiet).working(f"loading {printable(path.name)}"):
        opened = opening.open_model(path, options)
    for note in opened.tokenizer.notes:
        Reporter(quiet).note(f"{printable(path.name)}: {note}")
    if opened.engine.note and not quiet:
        Reporter(quiet).warn(opened.engine.note)
    if opened.engine.head_note:
        Reporter(quiet).note(opened.engine.head_note)
    with unechoed(), compiling(quiet):
        opened.engine.start()
    return opened
