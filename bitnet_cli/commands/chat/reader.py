"""Where the lines of a chat come from: a terminal with an editor (prompt_toolkit), or a pipe.

Out: one message or command at a time, None at the end. Several lines: Alt-Enter, a paste, or a line that begins with three quotes, up
to the next three. The history is a private file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitnet_kernels import private

from bitnet_cli.commands.chat.keys import QUOTES, keys
from bitnet_cli.commands.reporting import say
from bitnet_cli.text.files import decoded_lines

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT, CONTINUED = ">>> ", "... "
HELP = "Send a message (/help for help)"
HINT = "Ctrl-D or /bye leaves, /help lists commands"


class Reader(Protocol):
    """Gives messages."""

    def read(self) -> str | None:
        """The next one, or None at the end."""


def state_folder() -> Path | None:
    """Where chats leave what they remember: $XDG_STATE_HOME/bitnet, else ~/.local/state/bitnet; on Windows %LOCALAPPDATA%/bitnet.

    None: there is no home.
    """
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "bitnet"
    home = private.home()
    return home / ".local" / "state" / "bitnet" if home else None


def history_file() -> Path | None:
    """The private file of what was typed: $BITNET_HISTORY, else one in the state folder. None: there is to be none, or it cannot be had."""
    wish = os.environ.get("BITNET_HISTORY")
    if wish == "":
        return None
    folder = Path(wish).parent if wish else state_folder()
    if folder is None:
        return None
    path = folder / (Path(wish).name if wish else "chat_history")
    try:
        private.make(folder)  # whatever the umask is
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return None
    return path


class PipeReader:
    """Lines of stdin. On a terminal whose output goes elsewhere, a prompt is shown on stderr.

    encoding: as decode_text. BadFileError, from `read`: bytes that are not text.
    """

    def __init__(self, encoding: str | None = None) -> None:
        self._prompts = sys.stdin.isatty()
        self._lines = None if self._prompts else decoded_lines(sys.stdin.buffer.readline, "stdin", encoding)
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")

    def _line(self, prompt: str) -> str | None:
        if self._prompts:
            say(prompt, end="")
        if self._lines is not None:
            return next(self._lines, None)
        line = sys.stdin.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None

    def read(self) -> str | None:
        """As in `Reader`; empty lines are no messages."""
        line = self._line(PROMPT)
        while line is not None and not line.strip():
            line = self._line(PROMPT)
        if line is None or not line.startswith(QUOTES):
            return line
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            more = self._line(CONTINUED)
            if more is None:
                break
            lines.append(more)
        return unquoted(QUOTES + "\n".join(lines))


def unquoted(text: str) -> str:
    """A message without the three quotes around it."""
    if not text.lstrip().startswith(QUOTES):
        return text
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")


class TerminalReader:
    """A line editor. meter: text for the line below it; commands: name -> help, for completion."""

    def __init__(self, meter: Callable[[], str], commands: Mapping[str, str]):
        self._meter, self._full = meter, ""
        self._session = _session(lambda: self._full, commands)
        _follow_reflow(self._session.app)
        self._interrupted = False

    def read(self) -> str | None:
        """As in `Reader`. The first Ctrl-C clears the line or hints, the second in a row ends."""
        self._full = self._meter()  # once a prompt, not once a key: it encodes the whole chat
        while True:
            try:
                text = self._session.prompt(pre_run=lambda: _show_the_bar(self._session.app))
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._interrupted:
                    return None
                self._interrupted = True
                print(f"({HINT})")  # noqa: T201
                continue
            self._interrupted = False
            if text.strip():
                return unquoted(text)


def _session(meter: Callable[[], str], commands: Mapping[str, str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.output.color_depth import ColorDepth
    from prompt_toolkit.styles import Style

    class Commands(Completer):
        def get_completions(self, document, complete_event):  # type: ignore[no-untyped-def]
            text = document.text
            if text.startswith("/") and document.is_cursor_at_the_end and " " not in text:
                for name, about in commands.items():
                    if name.startswith(text):
                        yield Completion(name, -len(text), display_meta=about)

    def placeholder() -> HTML | str:
        if is_searching():  # what is found stands in its place
            return ""
        narrow = get_app().output.get_size().columns <= len(PROMPT + HELP)
        return HTML(f"<placeholder>{'/help' if narrow else HELP}</placeholder>")

    # The bar itself has no style: spaces with one are drawn up to the edge, and wrap, prompt and all, when the terminal becomes narrower.
    # Not asked for the cursor's place, prompt_toolkit does not fill the screen down to a bar at its foot: in a full screen that becomes
    # narrower, the prompt would go out of reach into the scrollback.
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
    style = Style.from_dict({"bottom-toolbar": "noreverse", "meter": "fg:ansibrightblack", "placeholder": "fg:ansibrightblack"})
    return PromptSession(
        PROMPT,
        multiline=True,
        key_bindings=keys(),
        prompt_continuation=lambda width, line, wrapped: " " * width if wrapped else CONTINUED,
        history=_history(),
        completer=Commands(),
        complete_while_typing=True,
        reserve_space_for_menu=6,
        placeholder=placeholder,
        bottom_toolbar=lambda: [("class:meter", meter())],
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        style=style,
        enable_suspend=True,
    )


def _follow_reflow(app: Any) -> None:
    """When a terminal becomes narrower it breaks lines, and the cursor stands lower than prompt_toolkit believes, which would leave a
    second prompt. Where its insides are not as they were (3.0), nothing is changed.
    """
    before: Any = getattr(app, "_on_resize", None)

    def on_resize() -> None:
        renderer, output = app.renderer, app.output
        screen, cursor = getattr(renderer, "_last_screen", None), getattr(renderer, "_cursor_pos", None)
        if screen is None or cursor is None:
            before()
            return
        columns, rows = output.get_size().columns, [screen.data_buffer[y] for y in range(screen.height)]
        more = [max((x for x, cell in row.items() if cell.char.strip()), default=0) // columns for row in rows]
        output.cursor_up(cursor.y + sum(more[: cursor.y]) + cursor.x // columns)
        # Line by line: what is cleared at once from the first row on, tmux keeps in its scrollback.
        output.write_raw("\r\x1b7" + "\x1b[2K\x1b[B" * (len(rows) + sum(more)) + "\x1b8")
        renderer.reset()
        _show_the_bar(app)
        app._redraw()

    if before is not None:
        app._on_resize = on_resize


def _show_the_bar(app: Any) -> None:
    """Below the line, though nobody has counted the rows there."""
    app.renderer._min_available_height = 1


def _history() -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    return FileHistory(str(path)) if path is not None else InMemoryHistory()
