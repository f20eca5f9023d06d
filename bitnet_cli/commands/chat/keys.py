"""Keys of the line editor of a chat, and the search through its history where the cursor cannot move (TERM=dumb)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bitnet_cli.commands.reporting import say
from bitnet_cli.machine.terminal import dumb

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'


def keys() -> KeyBindings:
    """Enter sends, unless three quotes are open; Alt-Enter begins a new line; Ctrl-C clears a line that is not empty. Ctrl-R searches the
    history, and Enter then sends what it found."""
    from prompt_toolkit.filters import Condition, is_searching
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.search import accept_search

    bound, typing = KeyBindings(), ~is_searching

    @bound.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text.strip()
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES)):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bound.add("enter", filter=is_searching)
    def _send_found(event: KeyPressEvent) -> None:
        accept_search()
        event.app.current_buffer.validate_and_handle()

    @bound.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bound.add("c-c", filter=typing)
    def _clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    if dumb():
        _search_without_a_cursor(bound, Condition)
    return bound


class Search:
    """A search from the newest line to the oldest. word: what is looked for; older: matches to pass over."""

    def __init__(self) -> None:
        self.active, self.word, self.older = False, "", 0

    def found(self, lines: Iterable[str]) -> str | None:
        """lines: oldest first."""
        matches = list(dict.fromkeys(line for line in reversed(list(lines)) if self.word and self.word.lower() in line.lower()))
        return matches[min(self.older, len(matches) - 1)] if matches else None


def _search_without_a_cursor(bound: KeyBindings, condition: Callable[[Callable[[], bool]], object]) -> None:
    """Every key says the search and what it finds on a line of its own: a line that stands cannot be changed here."""
    from prompt_toolkit.keys import Keys

    search = Search()
    searching = {"filter": condition(lambda: search.active), "eager": True}

    def tell(event: KeyPressEvent, **changed: object) -> None:
        vars(search).update({"active": True, "older": 0} | changed)
        say(f"\n(search) {search.word}: {search.found(event.current_buffer.history.get_strings()) or ''}", end="")

    @bound.add("c-r", eager=True)
    def _begin_or_older(event: KeyPressEvent) -> None:
        tell(event, **({"older": search.older + 1} if search.active else {"word": ""}))

    @bound.add(Keys.Any, **searching)  # type: ignore[arg-type]
    def _more(event: KeyPressEvent) -> None:
        tell(event, word=search.word + event.data)

    @bound.add("backspace", **searching)  # type: ignore[arg-type]
    def _less(event: KeyPressEvent) -> None:
        tell(event, word=search.word[:-1])

    @bound.add("c-c", **searching)  # type: ignore[arg-type]
    @bound.add("c-g", **searching)  # type: ignore[arg-type]
    def _end(event: KeyPressEvent) -> None:
        search.active = False
        event.app.exit(result="")

    @bound.add("enter", **searching)  # type: ignore[arg-type]
    def _send_found(event: KeyPressEvent) -> None:
        history = event.current_buffer.history
        found = search.found(history.get_strings())
        search.active = False
        if found is not None:
            history.append_string(found)
        event.app.exit(result=found or "")
