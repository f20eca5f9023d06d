"""Calls of tools and thoughts in an answer: how models write them, and how they are read while the answer grows.

    text ── Reader.push ──> Part(kind, text): `reasoning`, `content`, `call` (the name of a tool), `arguments` (JSON, in pieces)

What may be the beginning of a mark is held back until that is known; spaces around a content belong to the template. The shapes that are
read are those to which forms (serving/forms.py) hold the model, so that nothing has to be guessed.
"""

from __future__ import annotations

from typing import NamedTuple

from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Template

THINK, THOUGHT = "<think>", "</think>"


class CallFormat(NamedTuple):
    """A call is `mark + before + NAME + middle + ARGUMENTS + after`, and `between` stands between two; `mark` is in no other text."""

    mark: str
    before: str
    middle: str
    after: str
    between: str | None  # None: one call an answer


# Nous Research's Hermes, Qwen 2.5 and 3, SmolLM; the one that a model is told of whose own format knows no tools.
HERMES = CallFormat("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
# Llama 3.1 and later, "JSON based tool calling" in the model card of meta-llama/Llama-3.1-8B-Instruct.
LLAMA_3 = CallFormat('{"name": "', "", '", "parameters": ', "}", None)


def call_format(template: Template) -> CallFormat:
    """How a model writes calls, by what its template says of it."""
    text = template.spelled
    if HERMES.mark not in text and "ipython" in text and '"parameters"' in text:
        return LLAMA_3
    return HERMES


def thinks(template: Template) -> bool:
    """Whether answers may begin with thoughts."""
    return isinstance(template, JinjaTemplate) and THOUGHT in template.source


class Part(NamedTuple):
    kind: str
    text: str


def held_back(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((count for count in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:count])), 0)


class Reader:
    """Of one answer.

    calls      how calls look; None: there are none, and what looks like one is content
    thinking   whether the prompt has already begun a thought
    may_think  whether the answer may begin with one
    """

    def __init__(self, calls: CallFormat | None = None, *, thinking: bool = False, may_think: bool = False):
        self._calls = calls
        self._held = ""
        self._spaces: dict[str, str] = {}  # after what was told of a kind
        self._state = self._thought if thinking else self._start if may_think else self._content
        self._depth, self._string, self._escaped = 0, False, False
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """What is known now."""
        self._held += text
        self._parts = []
        before = None
        while self._held and (self._held, self._state) != before:
            before = (self._held, self._state)
            self._state()
        return self._parts

    def finish(self) -> list[Part]:
        """The text has ended: what was held back is what it looks like."""
        self._parts = []
        if self._state == self._start:
            self._state = self._content
        if self._state == self._thought:
            self._say("reasoning", self._held)
        elif self._state == self._content:
            self._say("content", self._held)
        elif self._state == self._arguments:
            self._state()
        self._held = ""
        return self._parts

    def _tell(self, kind: str, text: str) -> None:
        if text:
            self._parts.append(Part(kind, text))

    def _say(self, kind: str, text: str) -> None:
        """Text of a kind, without the spaces around all of it."""
        text = self._spaces[kind] + text if kind in self._spaces else text.lstrip()
        shown = text.rstrip()
        if shown or kind in self._spaces:
            self._spaces[kind] = text[len(shown) :]
        self._tell(kind, shown)

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held, self._state = text[len(THINK) :], self._thought
        elif not THINK.startswith(text):
            self._state = self._content

    def _thought(self) -> None:
        thought, mark, rest = self._held.partition(THOUGHT)
        if mark:
            self._say("reasoning", thought)
            self._held, self._state = rest, self._content
        else:
            keep = held_back(self._held, THOUGHT)
            cut = len(self._held) - keep
            self._say("reasoning", self._held[:cut])
            self._held = self._held[cut:]

    def _content(self) -> None:
        if self._calls is None:
            self._say("content", self._held)
            self._held = ""
            return
        content, mark, rest = self._held.partition(self._calls.mark)
        if mark:
            self._say("content", content)
            self._held, self._state = rest, self._name
        else:
            cut = len(self._held) - held_back(self._held, self._calls.mark)
            self._say("content", self._held[:cut])
            self._held = self._held[cut:]

    def _name(self) -> None:
        assert self._calls is not None
        name, middle, rest = self._held.removeprefix(self._calls.before).partition(self._calls.middle)
        if middle and self._held.startswith(self._calls.before):
            self._tell("call", name)
            self._held, self._state = rest, self._arguments
            self._depth, self._string, self._escaped = 0, False, False

    def _arguments(self) -> None:
        """JSON up to the brace that closes its first one."""
        for at, char in enumerate(self._held):
            if self._string:
                self._escaped, self._string = char == "\\" and not self._escaped, char != '"' or self._escaped
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "]}":
                self._depth -= 1
                if not self._depth:
                    self._tell("arguments", self._held[: at + 1])
                    self._held, self._state = self._held[at + 1 :], self._after
                    return
        self._tell("arguments", self._held)
        self._held = ""

    def _after(self) -> None:
        assert self._calls is not None
        if self._held.startswith(self._calls.after):
            self._held, self._state = self._held[len(self._calls.after) :], self._content
