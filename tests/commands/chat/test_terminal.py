"""A chat on a terminal, through tmux: keys in, screens out."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ...model.chat_models import reciting_model
from ...screen import BITNET, Screen, needs_tmux

pytestmark = needs_tmux

MARKDOWN = """# A title

Some **bold words** and `code()` in a paragraph that is long enough to be wrapped over two lines of the terminal.

- first item
- second item

```python
x = [red]  # markup
```

The <b>end</b>. """
SHOWN = """\
A title

Some bold words and code() in a paragraph that is long enough to be wrapped over
two lines of the terminal.

 • first item
 • second item

  x = [red]  # markup

The <b>end</b>.
"""
# No word twice, so that a lost or repeated one shows; paragraphs of 40.
WORDS = [f"w{i}" + ("\n\n" if i % 40 == 39 else " ") for i in range(4000)]


@pytest.fixture(scope="module")
def markdown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_model(tmp_path_factory.mktemp("terminal") / "markdown.gguf", MARKDOWN)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thousands of words, then the same again, until the context of 65,536 tokens is full: minutes."""
    path = tmp_path_factory.mktemp("terminal") / "endless.gguf"
    return reciting_model(path, "".join(WORDS), context=1 << 16, endless=True)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    screens = []

    def make(model: Path, *arguments: str, **options: Any) -> Screen:
        screens.append(Screen([*BITNET, "run", str(model), "-t", "1", "--temp", "0", *arguments], tmp_path, **options))
        screens[-1].wait(">>> ")
        return screens[-1]

    yield make
    for one in screens:
        one.close()


def words_of(text: str) -> list[int]:
    """Numbers of the words of `endless` on a screen, in order."""
    return [int(number) for number in re.findall(r"\bw(\d+)\b", text)]


def test_a_session(markdown: Path, screen: Callable[..., Screen], tmp_path: Path) -> None:
    """A chat model and no prompt: the chat begins. Markdown, the meter, commands, leaving."""
    chat = screen(markdown, columns=81)
    assert "/help" in chat.text()
    chat.line("Hello")
    text = chat.wait("The <b>end</b>.")
    assert SHOWN in text
    chat.wait(lambda text: re.search(r"\d+ of 2048 tokens", text) is not None)
    chat.line("/retry")
    chat.wait(lambda text: text.count("A title") == 2 and text.count("The <b>end") == 2)
    chat.line("/save talk")
    chat.wait("2 messages saved in talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["content"] for m in saved["messages"]] == ["Hello", MARKDOWN.strip()]
    chat.line("/undo")
    chat.wait("taken back: Hello")
    chat.line("/load talk")
    chat.wait("2 messages from")
    chat.line("/nonsense")
    chat.wait("no command /nonsense")
    chat.prompted()
    chat.keys("C-c")
    chat.wait("Ctrl-D or /bye leaves")
    chat.line("/bye")
    chat.wait("left with 0")
    history = tmp_path / "bitnet" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    assert "+/save talk" in history.read_text()


def test_ctrl_c_in_the_middle_of_an_answer(endless: Path, screen: Callable[..., Screen], tmp_path: Path) -> None:
    """The answer stops, the chat goes on, and what was said is remembered."""
    chat = screen(endless, "-c", "65536")
    chat.line("Hello")
    chat.wait("w60 ")  # it streams: nothing has ended
    assert "stopped" not in chat.text()
    chat.keys("C-c")
    text = chat.wait("(stopped)")
    assert "^C" not in text
    shown = words_of(text)
    assert shown == list(range(len(shown)))
    chat.line("/stats")
    assert "interrupted" in chat.wait("context  ")
    chat.line("/save talk")
    chat.wait("2 messages saved")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"][1]
    assert words_of(saved["content"]) == shown
    assert len(saved["ids"]) == len(shown)
    chat.prompted()
    chat.keys("C-d")
    chat.wait("left with 0")


@pytest.mark.slow
def test_resize_during_and_after_an_answer(endless: Path, screen: Callable[..., Screen]) -> None:
    """Narrower and wider again: not one word is lost or repeated, and lines fit."""
    chat = screen(endless, "-c", "65536")
    chat.line("Hello")
    chat.wait("w50 ")
    chat.resize(40)
    narrow = max(words_of(chat.text()))
    chat.wait(lambda text: max(words_of(text)) > narrow + 100)
    chat.resize(80)
    wide = max(words_of(chat.text()))
    chat.wait(lambda text: max(words_of(text)) > wide + 100)
    chat.keys("C-c")
    text = chat.wait("(stopped)")
    shown = words_of(text)
    assert shown == list(range(len(shown)))
    lines = [line for line in text.splitlines() if words_of(line)]
    between = [line for line in lines if narrow + 50 < words_of(line)[0] < narrow + 90]
    assert between and all(len(line) < 40 for line in between)
    assert any(len(line) > 60 and words_of(line)[0] > wide for line in lines)
    chat.resize(40, 12)
    chat.line("/set n 5")
    chat.wait("n is 5")
    chat.line("again")
    assert words_of(chat.wait("cut off after 5 tokens"))[-5:] == [0, 1, 2, 3, 4]
    chat.resize(80)
    chat.line("/bye")
    chat.wait("left with 0")


def test_several_lines(markdown: Path, screen: Callable[..., Screen], tmp_path: Path) -> None:
    chat = screen(markdown, "-n", "1")
    chat.line('"""one')
    chat.line('two"""')
    chat.wait("cut off after 1 tokens")
    chat.prompted()
    chat.keys("three", "Escape", "Enter", "four", "Enter")
    chat.wait(lambda text: text.count("cut off") == 2)
    chat.line("/save talk")
    chat.wait("4 messages saved")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["one\ntwo", "three\nfour"]


@pytest.mark.parametrize("term", ["screen-256color", "dumb"])
def test_the_history_is_searched(markdown: Path, screen: Callable[..., Screen], term: str) -> None:
    """Ctrl-R and a word show the newest line with it, Ctrl-R again an older one, and Enter sends it."""
    chat = screen(markdown, "-n", "1", TERM=term)
    for count, line in enumerate(("first whale", "second whale", "a ship"), 1):
        chat.line(line)
        chat.wait(lambda text, count=count: text.count("cut off") == count)
    chat.prompted()
    chat.keys("C-r")
    chat.keys("w", "h", "a")
    text = chat.wait(lambda text: "second whale" in text.splitlines()[-1] or text.count("second whale") > 1)
    assert "second whaleSend" not in text and "whale/help" not in text
    chat.keys("C-r")
    chat.wait(lambda text: text.count("first whale") > 1)
    chat.keys("Enter")
    chat.wait(lambda text: text.count("cut off") == 4)
    chat.line("/save talk")
    chat.wait("8 messages saved")
    saved = json.loads((chat.folder / "talk.json").read_text())["messages"]
    assert [m["content"] for m in saved if m["role"] == "user"] == ["first whale", "second whale", "a ship", "first whale"]


def test_resize_while_typing(markdown: Path, screen: Callable[..., Screen]) -> None:
    """One prompt is left, with what was typed."""
    chat = screen(markdown, "-n", "1")
    chat.line("/help")  # tmux pushes a prompt at the top out of the screen
    chat.wait("Ctrl-D leaves")
    before, typed = chat.text().count(">>> "), "hello there, whoever reads this line that is broken twice"
    chat.keys(typed)
    chat.wait("broken twice")
    for columns in (50, 30, 70, 80):
        chat.resize(columns)
        chat.wait(lambda text: "".join(text.split()).count("".join(typed.split())) == 1 and text.count("of 2048 tokens") == 1)
        time.sleep(0.3)  # nothing more comes
        assert chat.text().count(">>> ") == before
    chat.keys("Enter")
    assert chat.wait("cut off").count(">>> hello there") == 1


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_plain_terminals(markdown: Path, screen: Callable[..., Screen], variable: str) -> None:
    """NO_COLOR: structure without colours. A dumb terminal: the text as it is, and not one escape sequence of ours."""
    chat = screen(markdown, **{variable: "1" if variable == "NO_COLOR" else "dumb"})
    chat.line("Hello")
    chat.wait("end</b>.")
    styled = chat.text(styles=True)
    assert re.findall(r"\x1b\[(?:\d+;)*(?:3[0-7]|9\d)m", styled) == []
    assert ("**bold words**" in styled) == (variable == "TERM")


def test_model_text_does_not_drive_the_terminal(tmp_path: Path, screen: Callable[..., Screen]) -> None:
    evil = reciting_model(tmp_path / "evil.gguf", "be\x1b[2Jfore \x1b]0;title\x07after \x9b31mred. ")
    chat = screen(evil)
    chat.line("Hello")
    assert ">>> Hello\nbe[2Jfore ]0;titleafter 31mred.\n" in chat.wait("31mred")
