"""A chat template in Jinja, rendered in a process of its own: only where the user asks for it.

In: the template's text and messages. Out: pieces for `encode_chat`. A template is a program from a file, so it runs in Jinja's immutable
sandbox, in a child with a second of CPU time and 256 MB (jinja_child.py), and never sees what a message says: each character
of a message but the spaces around it is replaced by a private-use character before, and put back after, the rendering. So every
character of the result is known to be the template's or a message's, whatever the template does with it: trims, cuts, repeats. A
template that looks into messages (`'</think>' in content`) finds nothing. An earlier answer whose ids are known travels as one such
character.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitnet_kernels import child

from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.text.chat.templates import MARK, Message, Piece
from bitnet_cli.text.vocabulary import replace_surrogates

CHILD = Path(__file__).with_name("jinja_child.py")
SECONDS = 10.0  # from start to end, for a machine that is busy; the second of CPU time is counted in the child
MAX_OUTPUT = 4 << 20  # characters
# Private-use planes 15 and 16, the last two code points of each left out (they are noncharacters).
STAND_INS = [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]


@dataclass(frozen=True)
class JinjaTemplate:
    """`path`: where `source` is from, for messages; bos_token and eos_token: their texts, for the template's variables of these names."""

    name: str
    source: str
    path: str
    bos_token: str = ""
    eos_token: str = ""
    stops: tuple[str, ...] = ()
    bos: bool | None = None

    @property
    def marks(self) -> frozenset[str]:
        return frozenset([*MARK.findall(self.source), self.bos_token, self.eos_token]) - {""}

    def pieces(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """As in `Template`. BadFileError: the template is wrong, refuses these messages, or takes too long or too much.

        UnsupportedError: here is no Python that could be started to render it, as in a frozen program.
        """
        hidden = _Hidden(messages)
        text = self._render(hidden.messages, ask)
        pieces: list[Piece] = []
        for part in re.split("([\U000f0000-\U0010fffd]+)", text):
            pieces += hidden.found(part)
        return pieces

    def _render(self, messages: list[dict[str, str]], ask: bool) -> str:
        job = {"template": self.source, "messages": messages, "add_generation_prompt": ask, "limit": MAX_OUTPUT}
        job |= {"bos_token": self.bos_token, "eos_token": self.eos_token}
        try:
            answer = _ask_child(json.dumps(job).encode())
        except child.NoChildError as error:
            raise UnsupportedError(f"{self.path}: chat template: is rendered in a process of its own, and {error}") from None
        if answer is None:
            reason = "takes more than a second, 256 MB, or the text that it may give"
            raise BadFileError(self.path, "chat template", reason)
        if "error" in answer:
            raise BadFileError(self.path, "chat template", answer["error"])
        return answer["text"]


class _Hidden:
    """Messages with stand-ins for characters, and what the stand-ins stand for."""

    def __init__(self, messages: Sequence[Message]):
        self._means: dict[str, str | list[int]] = {}
        self._of: dict[str, str] = {}
        self._free = iter(STAND_INS)
        self.messages = [{"role": m.role, "content": self._hide(m)} for m in messages]

    def _hide(self, message: Message) -> str:
        if message.ids is not None:
            return self._new(list(message.ids))
        text = replace_surrogates(message.content)
        core = text.strip()
        at = text.find(core)
        return text[:at] + "".join(map(self._character, core)) + text[at + len(core) :] if core else text

    def _character(self, character: str) -> str:
        if character not in self._of:
            self._of[character] = self._new(character)
        return self._of[character]

    def _new(self, meaning: str | list[int]) -> str:
        try:
            stand_in = chr(next(self._free))
        except StopIteration:
            raise UsageError("the chat has more different characters than a template in Jinja can be given") from None
        self._means[stand_in] = meaning
        return stand_in

    def found(self, part: str) -> list[Piece]:
        """Pieces of one part of the rendered text: all of it stand-ins, or none. Stand-ins that nobody gave are letters."""
        if not part or not ord(part[0]) >= 0xF0000:
            return [(part, True)] if part else []
        pieces: list[Piece] = []
        for meaning in (self._means.get(character, character) for character in part):
            last = pieces[-1] if pieces else None
            if isinstance(meaning, list):
                pieces.append(meaning)
            elif isinstance(last, tuple):
                pieces[-1] = (last[0] + meaning, False)
            else:
                pieces.append((meaning, False))
        return pieces


def _ask_child(job: bytes) -> dict[str, str] | None:
    """The child's answer; None where it was stopped or gave no answer of the right form. Raises NoChildError."""
    with child.start(CHILD.stem, "main", ("jinja2", "markupsafe"), folder=str(CHILD.parent)) as process:
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(job)
            process.stdin.close()
            data = process.stdout.read(6 * MAX_OUTPUT + 1000)  # one character takes at most 12 bytes in JSON, on average far less
        except OSError:
            return None
        finally:
            timer.cancel()
            process.kill()
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    good = isinstance(answer, dict) and all(isinstance(value, str) for value in answer.values()) and ("text" in answer or "error" in answer)
    return answer if good else None
