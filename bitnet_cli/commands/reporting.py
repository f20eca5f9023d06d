"""What commands say. While they work, on stderr: a progress bar on a terminal, notes, and one line at the end. Reports, on stdout: rows.

Reports are plain ASCII words in 80 columns, the same on a terminal and in a pipe; text from files is escaped.
"""

import contextlib
import json
import math
import os
import re
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitnet_cli.errors import UsageError, printable
from bitnet_cli.machine.terminal import NARROW

Progress = Callable[[str, int, int], None]


PATIENCE = 0.5  # seconds before a bar appears
NUMBERS = 9  # columns of what stands beside a bar's name in a narrow terminal
WIDTH, LABEL = 80, 14  # columns of a report, and of the labels on its left


def row(label: str, text: str) -> None:
    """One row of a report on stdout: a label and its text, wrapped with a hanging indent. A long path is not cut."""
    lines = textwrap.wrap(printable(text), WIDTH - LABEL, break_long_words=False, break_on_hyphens=False) or [""]
    for i, line in enumerate(lines):
        put(f"{label if i == 0 else '':<{LABEL}}{line}".rstrip())


def put(text: str) -> None:
    """A line, or lines, of a report on stdout: control characters are escaped, characters that its encoding lacks are replaced."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(printable(text, "\n").encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


def say(text: str, end: str = "\n", dim: bool = False) -> None:
    """A line, or lines, on stderr: the way of all that commands say, so that nothing foreign in it drives the terminal."""
    start, stop = ("\x1b[2m", "\x1b[0m") if dim else ("", "")
    print(f"{start}{printable(text, chr(10))}{stop}", end=end, file=sys.stderr, flush=True)  # noqa: T201


def lacks(command: str, extra: str, error: ImportError) -> UsageError:
    """What a command needs, and how it is installed. This project is on no index, so what its extra holds is named."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        marked = re.compile(rf"([\w.-]+(?:\[[\w,-]+\])?).*extra == ['\"]{extra}['\"]")
        names = [match[1] for wanted in metadata.requires("bitnet-cli") or () if (match := marked.match(wanted))]
        return UsageError(f"{command} needs {error.name}: pip install {shlex.join(names)}")
    return UsageError(f"{command} needs {error.name}")


def byte_size(size: int | None) -> str:
    """Bytes for a reader, in units of 1,000: `5.9 MB`."""
    if size is None:
        return "of unknown size"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.{2 if value < 10 else 1}f} {units[0]}"


def print_json(value: Any) -> None:
    """One JSON value on stdout, in printable ASCII. NaN and infinities, which JSON has not, become null."""
    put(json.dumps(_finite(value), allow_nan=False).replace("\x7f", "\\u007f"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Reporter:
    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.on_terminal = not quiet and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """One line that is not an error."""
        if not self.quiet:
            say(f"bitnet: note: {printable(text)}")

    def warn(self, text: str) -> None:
        """One line about a result that may be worthless: said even when quiet."""
        say(f"bitnet: warning: {printable(text)}")

    def summary(self, output: Path, details: list[str], size: int, seconds: float) -> None:
        """`details` and the size and speed of what was written, in one line."""
        if not self.quiet:
            speed = f"{size} bytes in {seconds:.1f} s, {size / 1e6 / max(seconds, 1e-9):.0f} MB/s"
            say(printable(f"{output}: {', '.join(details)}; {speed}"))

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress | None]:
        """A function for write_gguf's `progress`; None where nobody would see a bar."""
        if not self.on_terminal:
            yield None
            return
        with Bar(what, "bytes") as bar:
            yield lambda _name, done, total: bar.update(done, total)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A bar without an end while the body runs."""
        if not self.on_terminal:
            yield
            return
        done = threading.Event()
        with Bar(what, "", patience=0) as bar:

            def tell() -> None:
                if not done.wait(PATIENCE):
                    bar.update(0, None)

            teller = threading.Thread(target=tell, daemon=True)
            teller.start()
            try:
                yield
            finally:
                done.set()
                teller.join()

    @contextlib.contextmanager
    def counting(self, what: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
        """A function of (done, all) for what is counted in `unit`s; None where nobody would see a bar."""
        if not self.on_terminal:
            yield None
            return
        with Bar(what, unit) as bar:
            yield bar.update


class Bar:
    """A progress bar on stderr. It appears after `patience` seconds (None: PATIENCE), and goes away when all is done.

    unit: `bytes`, what is counted, or nothing. In a narrow terminal it has fewer columns; where the cursor cannot move (TERM=dumb), it is
    not drawn.
    """

    def __init__(self, what: str, unit: str, patience: float | None = None):
        self._what, self._unit = printable(what), unit
        self._due = time.monotonic() + (PATIENCE if patience is None else patience)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def update(self, done: int, total: int | None) -> None:
        """So much is done; total None: nobody knows of how much."""
        if done == total:
            self.end()
            return
        if self._bar is None:
            if time.monotonic() < self._due:
                return
            self._show(total)
        self._bar.update(self._task, completed=done, total=total)

    def end(self) -> None:
        """Take the bar away; it does not come back."""
        self._due = math.inf
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, total: int | None) -> None:
        from rich.cells import cell_len, set_cell_size
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        # COLUMNS may be of another window, or of this one before it was resized; a bar that is too wide leaves a line behind each time.
        sizeless = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        known, console = total is not None, Console(stderr=True, _environ=sizeless)
        wide: list[Any] = [BarColumn()]
        if self._unit == "bytes":
            wide += [DownloadColumn(), TransferSpeedColumn()]
        elif self._unit:
            of = " of {task.total:.0f}" if known else ""
            wide.append(TextColumn(f"{{task.completed:.0f}}{of} {self._unit}"))
        wide.append(TimeRemainingColumn() if known else TimeElapsedColumn())
        narrow: list[Any] = [TextColumn("{task.percentage:.0f} %")] if known else [TimeElapsedColumn()]
        what = self._what
        if console.width < NARROW and cell_len(what) > (room := max(console.width - NUMBERS, 1)):
            what = set_cell_size(what, room - 1) + "…"
        columns = [TextColumn(what, markup=False), *(wide if console.width >= NARROW else narrow)]
        self._bar = Progress(*columns, console=console, transient=True, disable=console.is_dumb_terminal)
        self._task = self._bar.add_task(self._what, total=total)
        self._bar.start()
