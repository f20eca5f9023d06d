"""Markdown on a terminal while it is being written.

In: pieces of model text. Out: styled lines on stdout that stay in the scrollback. Only the block that is growing (a paragraph, a list)
is ever drawn again, and of it only the lines that changed, which is nearly always the last one: no flicker, and nothing to clean up.
Lines that have left the screen are never touched. Model text is stripped of control characters before, and rich gets it as Markdown,
not as markup.
"""

from __future__ import annotations

import os
import re
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from bitnet_cli.text.stream import terminal_safe

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.markdown import Markdown

EVERY = 0.05  # seconds between two drawings; a block that takes long to draw is drawn less often
SHARE = 0.1  # of the time goes into drawing, at most
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
# The beginning of a line that does not tell yet what the line will be: `-` may be a list, a rule or the underline of a heading.
_UNDECIDED = re.compile(r"(?:^|\n)[ \t]*(?:[-=*_#>+~`|]+|\d{1,9}[.)]?)[ \t]*\Z")


class MarkdownStream:
    """One answer. `push` text, then `finish`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.theme import Theme

        # A background of its own would suit either dark terminals or light ones.
        theme = Theme({"markdown.code": "bold cyan"})
        self._console = Console(highlight=False, emoji=False, markup=False, soft_wrap=False, theme=theme)
        self._block = ""  # source of the block that grows
        self._lines: list[str] = []  # of it on the screen; the cursor is at the end of the last
        self._shown_before = 0  # characters of it on the screen above these, from before the window got narrower
        self._width = self._columns()
        self._due = 0.0

    def _columns(self) -> int:
        return _size().columns - 1  # a full last column leaves the cursor in a state that terminals disagree about

    def push(self, text: str) -> None:
        """Add text; it is shown at once, or with what comes within the next moment."""
        self._block += terminal_safe(text).expandtabs(4)
        now = time.monotonic()
        if now >= self._due:
            self._draw(growing=True)
            end = time.monotonic()
            self._due = end + max(EVERY, (end - now) / SHARE)

    def finish(self) -> None:
        """Show the rest and end the line."""
        self._draw(growing=False)
        if self._lines:
            self._write("\n")
            self._lines = []

    def _draw(self, *, growing: bool) -> None:
        self._notice_width()
        starts = self._starts()
        for start, end in pairwise(starts):
            lines = self._block.splitlines(keepends=True)
            self._show(self._rendered("".join(lines[start:end])))
            self._write("\n\n")
            self._lines, self._shown_before, self._width = [], 0, self._columns()
        if len(starts) > 1:
            self._block = "".join(self._block.splitlines(keepends=True)[starts[-1] :])
        self._show(self._rendered(_completed(self._block) if growing else self._block))

    def _starts(self) -> list[int]:
        """Line numbers at which the top-level blocks of the pending text begin."""
        tokens = _parse(_UNDECIDED.sub("", self._block))
        return sorted({token.map[0] for token in tokens if token.level == 0 and token.map is not None})

    def _notice_width(self) -> None:
        """A narrower window breaks lines that are on the screen; where they begin is then not known. Go on below them."""
        columns = self._columns()
        if columns >= self._width:
            return  # a wider one is used from the next block on
        if self._lines:
            self._shown_before += sum(map(_visible, self._lines))
            self._write("\n")
            self._lines = []
        self._width = columns

    def _rendered(self, text: str) -> list[str]:
        if not text.strip():
            return []
        with self._console.capture() as captured:
            self._console.print(_markdown(text), width=max(self._width, 10), end="")
        lines = [_trimmed(line) for line in captured.get().split("\n")]
        while lines and not _visible(lines[-1]):
            lines.pop()
        while lines and not _visible(lines[0]):
            lines.pop(0)
        return _without(lines, self._shown_before)

    def _show(self, lines: list[str]) -> None:
        """Replace the lines on the screen by these."""
        old = self._lines
        same = next((i for i, (a, b) in enumerate(zip(old, lines, strict=False)) if a != b), min(len(old), len(lines)))
        if same == len(old) == len(lines):
            return
        if not old:
            self._write("\n".join(lines))
        elif same == len(old):
            self._write("\n" + "\n".join(lines[same:]))
        elif same == len(old) - 1 < len(lines) and lines[same].startswith(old[same]):
            self._write("\n".join(lines[same:])[len(old[same]) :])
        else:
            same = min(max(same, len(old) - _size().lines + 1), len(lines) - 1) if lines else 0
            up = len(old) - 1 - same
            self._write((f"\x1b[{up}A" if up else "") + "\r" + "\x1b[K\n".join(lines[same:]) + "\x1b[J")
        self._lines = lines

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _size() -> os.terminal_size:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return os.terminal_size((80, 24))
    return os.terminal_size((max(size.columns or 80, 12), max(size.lines or 24, 2)))  # 0: the terminal does not know


def _parse(text: str) -> list[Token]:
    """Markdown without HTML, which would vanish; a line end of the model's is a line end."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    for token in tokens:
        for child in token.children or []:
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def _markdown(text: str) -> Markdown:
    """What rich prints: headings on the left, code without a background, links with their address as text, tables with all their words."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown, TableElement
    from rich.padding import Padding
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    class LeftHeading(Heading):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            self.text.justify = "left"
            yield Text.assemble(self.text, style="bold")

    class PlainCode(CodeBlock):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            code = str(self.text).rstrip()
            yield Padding(Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default"), (0, 0, 0, 2))

    class WholeTable(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                for column in part.columns if isinstance(part, Table) else []:
                    column.overflow = "fold"  # rich cuts what is wider than a column
                yield part

    class Shown(Markdown):
        elements = {  # noqa: RUF012
            **Markdown.elements,
            "heading_open": LeftHeading,
            "fence": PlainCode,
            "code_block": PlainCode,
            "table_open": WholeTable,
        }

    shown = Shown("", hyperlinks=False)
    shown.markup, shown.parsed = text, _parse(text)
    return shown


def _completed(text: str) -> str:
    """A growing text as it will probably be: without a beginning that may become anything, with its bold and its code closed."""
    text = _UNDECIDED.sub("", text)
    if re.search(r"(?m)^ {0,3}(```|~~~)", text):
        return text
    for mark in ("`", "**"):
        text = text.removesuffix(mark) if text.count(mark) % 2 and text.endswith(mark) else text
        if text.count(mark) % 2:
            text = text.rstrip() + mark
    return text


def _visible(line: str) -> int:
    """Characters of a line without styles and spaces: the same at every width."""
    return len("".join(_STYLE.sub("", line).split()))


def _trimmed(line: str) -> str:
    """A line without the spaces at its end that a style may follow."""
    return re.sub(r"(?: |(\x1b\[[0-9;]*m))+\Z", lambda end: "".join(_STYLE.findall(end[0])), line)


def _without(lines: list[str], characters: int) -> list[str]:
    """The lines after so many visible characters; styles that were on stay on."""
    lines = list(lines)
    while lines and characters >= _visible(lines[0]):
        characters -= _visible(lines.pop(0))
    if not lines or not characters:
        return lines
    kept, styles = "", ""
    for part in re.findall(r"\x1b\[[0-9;]*m|.", lines[0], re.DOTALL):
        if part.startswith("\x1b["):
            styles, kept = styles + part, kept + part
        elif characters:
            characters -= not part.isspace()
        else:
            kept += part
    return [kept.lstrip() if not styles else kept, *lines[1:]]
