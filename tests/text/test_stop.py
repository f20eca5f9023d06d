"""Stop strings: what is shown is the text up to the first of them, whatever pieces it comes in."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.text.stop import StopStrings


def shown(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    found = StopStrings(stops)
    return [*(found.push(piece) for piece in pieces), found.finish()], found.found


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["Hello ", "World"], [], "Hello World", None),
        (["Hello ", "World"], [""], "Hello World", None),
        (["Hello ", "World"], ["lo W"], "Hel", "lo W"),
        (["a", "b", "c", "d"], ["bc"], "a", "bc"),
        (["a", "b", "c", "d"], ["bd", "cd"], "ab", "cd"),
        (["abab", "ac"], ["abac"], "ab", "abac"),
        (["one\nUser", ": two"], ["\nUser:", "two"], "one", "\nUser:"),
        (["xyz"], ["yz", "y"], "x", "yz"),  # both begin there: the longer one
        (["User"], ["User:"], "User", None),  # held back, and shown in the end
        (["stop", "more"], ["stop"], "", "stop"),
    ],
)
def test_examples(pieces: list[str], stops: list[str], text: str, found: str | None) -> None:
    parts, met = shown(pieces, stops)
    assert ("".join(parts), met) == (text, found)


def test_no_more_than_needed_is_held_back() -> None:
    stops = StopStrings(["</s>", "\n\n"])
    assert [stops.push(piece) for piece in ("a<", "b</", "s", "c\n", "d")] == ["a", "<b", "", "</sc", "\nd"]


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_any_text_in_any_pieces(pieces: list[str], stops: list[str]) -> None:
    """The earliest stop string in the order in which characters come; of those that end in one piece, the one that begins first."""
    parts, found = shown(pieces, stops)
    text, result = "".join(pieces), "".join(parts)
    if found is None:
        assert result == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(result + found)
        assert not any(stop in result for stop in stops)
