"""A chat template in Jinja, rendered in a process of its own.

In: the template's text and messages. Out: pieces for `encode_chat`. A template is a program from a file, so it runs in Jinja's immutable
sandbox, in a child with a second of CPU time and 256 MB (jinja_child.py). It sees messages as they are, as in Hugging Face's
`apply_chat_template`; the child says of every character of the result whether it is the template's or a message's, whatever the template
did with it. An earlier answer whose ids are known is found again by the origins of its characters; where a template leaves out a part of
it, the rest is text.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnet_kernels import child

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.chat.templates import MARK, Message, Piece, Said
from bitnet_cli.text.vocabulary import replace_surrogates

CHILD = Path(__file__).with_name("jinja_child.py")
SECONDS = 10.0  # from start to end, for a machine that is busy; the second of CPU time is counted in the child
MAX_OUTPUT = 4 << 20  # characters
MESSAGE, TEMPLATE, FIRST, LAST = 0, 1, 2, 0x110000  # origins of characters, as in the child
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that clients give a model's thoughts
KEPT = 2  # renderings: of the chat with and without the beginning of an answer


@dataclass(frozen=True)
class JinjaTemplate:
    """A template and what it is given beside messages.

    path        where `source` is from, for messages
    bos_token, eos_token, more_tokens  texts of special tokens, for the template's variables of these names
    args        other variables, JSON's values; what they say is text, like a message
    """

    name: str
    source: str
    path: str
    bos_token: str = ""
    eos_token: str = ""
    stops: tuple[str, ...] = ()
    bos: bool | None = None
    more_tokens: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    _rendered: dict[bytes, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset([*MARK.findall(self.source), self.bos_token, self.eos_token]) - {""}

    @property
    def spelled(self) -> str:
        return self.source

    def pieces(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """As in `Template`. BadFileError: the template is wrong, refuses these messages, or takes too long or too much.

        UnsupportedError: here is no Python that could be started to render it, as in a frozen program.
        """
        own = _Own(messages)
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, **self.more_tokens}
        job = {
            "template": self.source,
            "messages": [as_given(message) for message in messages],
            "answers": own.starts,
            "tokens": {name: text for name, text in tokens.items() if text},
            "variables": {"tools": None, "documents": None, **self.args, "add_generation_prompt": ask},
            "limit": MAX_OUTPUT,
        }
        # Lone surrogates go before: two of them from two strings could meet and count as one character.
        answer = self._render(replace_surrogates(json.dumps(job, ensure_ascii=False)).encode())
        text, at = answer["text"], 0
        pieces: list[Piece] = []
        for count, origin in answer["runs"]:
            pieces.append(own.piece(text[at : at + count], origin))
            at += count
        return pieces

    def _render(self, job: bytes) -> dict[str, Any]:
        """The child's answer to a job; to one of the last ones without a child."""
        if job in self._rendered:
            return self._rendered[job]
        try:
            answer = _ask_child(job)
        except child.NoChildError as error:
            raise UnsupportedError(f"{self.path}: chat template: is rendered in a process of its own, and {error}") from None
        if answer is None:
            reason = "takes more than a second, 256 MB, or the text that it may give"
            raise BadFileError(self.path, "chat template", reason)
        if "error" in answer:
            raise BadFileError(self.path, "chat template", answer["error"])
        for old in list(self._rendered)[: 1 - KEPT]:
            self._rendered.pop(old, None)
        self._rendered[job] = answer
        return answer


def as_given(message: Message) -> dict[str, Any]:
    """A message as Hugging Face gives it to a template: no field that is None, thoughts under the names that templates know."""
    given = {name: value for name, value in message.as_dict().items() if value is not None}
    thoughts = next((given[name] for name in REASONING if given.get(name) is not None), None)
    return given if thoughts is None else {"thinking": thoughts, **given, "reasoning_content": thoughts}


class _Own:
    """Answers of the model with known ids: origins for their characters, and their pieces from origins.

    starts   [index of the message, origin of its first character]
    """

    def __init__(self, messages: Sequence[Message]):
        self.starts: list[list[int]] = []
        self._of: dict[int, Message] = {}
        free = FIRST
        # The latest first: a chat's last answers are those that the cache holds, should there be more characters than origins.
        for index, message in sorted(enumerate(messages), reverse=True):
            end = free + len(message.content)
            if message.ids is not None and message.given is None and end < LAST:
                self.starts.append([index, free])
                self._of[free] = message
                free = end + 1  # one left out, so that two answers are never one run

    def piece(self, text: str, origin: int) -> Piece:
        """One run of characters."""
        if origin < FIRST:
            return (text, origin == TEMPLATE)
        message = self._of.get(origin)
        return list(message.ids or ()) if message is not None and message.content == text else Said(text)


def _ask_child(job: bytes) -> dict[str, Any] | None:
    """The child's answer; None where it was stopped or gave no answer of the right form. Raises NoChildError."""
    with child.start(CHILD.stem, "main", ("jinja2", "markupsafe"), folder=str(CHILD.parent)) as process:
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(job)
            process.stdin.close()
            data = process.stdout.read(12 * MAX_OUTPUT + 1000)  # a character takes 12 bytes in JSON at most, and a run of them some 10
        except OSError:
            return None
        finally:
            timer.cancel()
            process.kill()
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    return answer if _is_sound(answer) else None


def _is_sound(answer: Any) -> bool:
    """Whether it is a text with an origin for every character, or an error: it may come from somebody who got out of the sandbox."""
    if not isinstance(answer, dict):
        return False
    if isinstance(answer.get("error"), str):
        return True
    text, runs = answer.get("text"), answer.get("runs")
    if not isinstance(text, str) or not isinstance(runs, list):
        return False
    pairs = all(isinstance(run, list) and len(run) == 2 for run in runs)
    return pairs and all(type(n) is int and n >= 0 for n in itertools.chain(*runs)) and sum(run[0] for run in runs) == len(text)
