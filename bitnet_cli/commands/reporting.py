"""What `convert` and `quantize` say while they work: a progress bar on a terminal, notes, and one line at the end. All on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bitnet_cli.errors import printable

Progress = Callable[[str, int, int], None]


class Reporter:
    def __init__(self, quiet: bool):
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One line that is not an error."""
        if not self.quiet:
            print(f"bitnet: note: {printable(text)}", file=sys.stderr)  # noqa: T201

    def summary(self, output: Path, details: list[str], size: int, seconds: float) -> None:
        """`details` and the size and speed of what was written, in one line."""
        if not self.quiet:
            speed = f"{size} bytes in {seconds:.1f} s, {size / 1e6 / max(seconds, 1e-9):.0f} MB/s"
            print(printable(f"{output}: {', '.join(details)}; {speed}"), file=sys.stderr)  # noqa: T201

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress | None]:
        """A function for write_gguf's `progress`; None where nobody would see a bar."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda _name, done, total: bar.update(task, completed=done, total=total)
