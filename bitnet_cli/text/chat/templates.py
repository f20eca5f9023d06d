"""Chat messages -> token ids, in the format that a model was trained on.

In: messages (role and text) and a tokenizer. Out: ids that end where the answer begins. A template gives *pieces*: its own text, in which
the names of control tokens are those tokens; text of messages, in which they are letters; and ids of earlier answers as the model gave
them, so that a KV cache that holds them stays valid. Nothing that a user writes can therefore become a control token.

The formats are data. Which one a file gets is decided in choice.py; a template in Jinja is rendered by jinja.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bitnet_cli.errors import UsageError
from bitnet_cli.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
MARK = re.compile(r"<[^<>\s]{1,40}>")  # what a role or an end is marked with: <|user|>, </s>

# (text, special) as in Tokenizer.encode_parts, or ids as they are
Piece = tuple[str, bool] | list[int]


@dataclass(frozen=True)
class Message:
    """One turn. `ids`: what the model wrote, token by token, where it is known; they decode to `content`."""

    role: str
    content: str
    ids: tuple[int, ...] | None = None

    def as_dict(self) -> dict[str, str]:
        """Role and content."""
        return {"role": self.role, "content": self.content}


class Template(Protocol):
    """What a chat needs to know of a format."""

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer, in formats that no control token ends."""

    @property
    def marks(self) -> frozenset[str]:
        """Names that must not be read as tokens where a message has them, control tokens or not."""

    @property
    def bos(self) -> bool | None:
        """Whether a text begins with the begin token; None: as the file says."""

    def pieces(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """The chat; `ask`: and the beginning of an answer."""


@dataclass(frozen=True)
class BuiltIn:
    """A format as data.

    turns           role -> text before and after the content
    ask             what the answer follows
    begin           text before the first turn
    trim            whether the spaces around contents go
    default_system  system message of a chat that has none
    needs           tokens without which a vocabulary cannot have been trained on it
    """

    name: str
    turns: Mapping[str, tuple[str, str]]
    ask: str
    begin: str = ""
    trim: bool = False
    default_system: str | None = None
    needs: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    bos: bool | None = None

    @property
    def marks(self) -> frozenset[str]:
        texts = [self.ask, *(text for turn in self.turns.values() for text in turn)]
        return frozenset(mark for text in texts for mark in MARK.findall(text))

    def pieces(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """As in `Template`."""
        pieces: list[Piece] = [(self.begin, True)]
        if self.default_system and not (messages and messages[0].role == "system"):
            messages = [Message("system", self.default_system), *messages]
        for message in messages:
            before, after = self.turns[message.role]
            if message.ids is not None:
                pieces += [(self.ask, True), list(message.ids), (after, True)]
            else:
                content = message.content.strip() if self.trim else message.content
                pieces += [(before, True), (content, False), (after, True)]
        return [*pieces, (self.ask, True)] if ask else pieces

    def with_end(self, end: str) -> BuiltIn:
        """The format with `{eos}` replaced by the vocabulary's end token."""
        turns = {role: (before, after.replace("{eos}", end)) for role, (before, after) in self.turns.items()}
        return replace(self, turns=turns)


def _same(before: str, after: str) -> dict[str, tuple[str, str]]:
    return {role: (before.format(role=role), after) for role in ROLES}


# As trained: tokenizer_config.json of microsoft/bitnet-b1.58-2B-4T and gpu/tokenizer.py of microsoft/BitNet. The GGUF file that Microsoft
# published has another one inside (`Human:`, `BITNETAssistant:`), with which the model does not stop (ikawrakow/ik_llama.cpp issue 339).
BITNET_2B_4T = BuiltIn(
    "bitnet-2b-4t",
    {role: (f"{role.capitalize()}: ", "<|eot_id|>") for role in ROLES},
    "Assistant: ",
    trim=True,
    needs=("<|eot_id|>",),
)
# Model card of meta-llama/Meta-Llama-3-8B-Instruct; HF1BitLLM/Llama3-8B-1.58-100B-tokens is trained from it.
LLAMA_3 = BuiltIn(
    "llama-3",
    _same("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    begin="<|begin_of_text|>",
    trim=True,
    needs=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
# Falcon3 Instruct: roles as in llama.cpp's template `falcon3` (src/llama-chat.cpp), answers ended by the vocabulary's end token, as in the
# templates of Tulu and of newer Falcon models, which share the form.
FALCON_3 = BuiltIn(
    "falcon3",
    {"system": ("<|system|>\n", "\n"), "user": ("<|user|>\n", "\n"), "assistant": ("<|assistant|>\n", "{eos}\n")},
    "<|assistant|>\n",
)
# Falcon-E declares ChatML. Where its vocabulary has no such tokens, what was reported to work is the older Falcon chat format
# (huggingface.co/blog/falcon-180b, "Prompt format").
FALCON_E = BuiltIn(
    "falcon-e",
    {"system": ("System: ", "\n"), "user": ("User: ", "\n"), "assistant": ("Falcon: ", "\n")},
    "Falcon:",
    trim=True,
    stops=("\nUser:", "\nFalcon:"),
)
# OpenAI's format; SmolLM2 and Qwen are trained on it, each with a system message of its own (choice.py reads it from the file).
CHATML = BuiltIn(
    "chatml",
    _same("<|im_start|>{role}\n", "<|im_end|>\n"),
    "<|im_start|>assistant\n",
    needs=("<|im_start|>", "<|im_end|>"),
)
# No format at all: a transcript that a model trained on text alone may continue.
PLAIN = BuiltIn(
    "plain",
    {"system": ("", "\n\n"), "user": ("User: ", "\n"), "assistant": ("Assistant: ", "\n")},
    "Assistant:",
    trim=True,
    stops=("\nUser:", "\nAssistant:"),
)
BUILT_IN = {template.name: template for template in (BITNET_2B_4T, LLAMA_3, FALCON_3, FALCON_E, CHATML, PLAIN)}


def encode_chat(tokenizer: Tokenizer, template: Template, messages: Sequence[Message], *, ask: bool = True) -> list[int]:
    """Ids of the chat, with the begin token where the file or the format says so."""
    pieces = [safe for piece in template.pieces(messages, ask=ask) for safe in _unmarked(tokenizer, template.marks, piece)]
    ids: list[int] = []
    run: list[tuple[str, bool]] = []
    bos = template.bos
    for piece in [*pieces, []]:
        if isinstance(piece, tuple):
            run.append(piece)
            continue
        if run:
            ids += tokenizer.encode_parts(run, bos=bos)
            run, bos = [], False
        ids += piece
    return ids


def _unmarked(tokenizer: Tokenizer, marks: Iterable[str], piece: Piece) -> list[Piece]:
    """A piece of a message, cut inside each mark that would be one token although it is no control token (`<|user|>` in some files)."""
    if not isinstance(piece, tuple) or piece[1]:
        return [piece]
    found = [mark for mark in marks if mark in piece[0] and len(tokenizer.encode(mark, bos=False)) == 1]
    pieces: list[Piece] = []
    rest = piece[0]
    while hits := [(rest.index(mark), mark) for mark in found if mark in rest]:
        at = min(hits)[0] + 1
        pieces += [(rest[:at], False), []]
        rest = rest[at:]
    return [*pieces, (rest, False)]


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """What ends an answer: every end token, and any other control token, which has no place inside one (`<|im_start|>`)."""
    return tokenizer.eos_ids | tokenizer.control_ids


def checked_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages from dictionaries with `role` and `content`. UsageError: none, an unknown role, content that is no text."""
    result = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{number}]: is no dictionary with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError(f"messages[{number}]: role is {role!r:.40}, expected {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UsageError(f"messages[{number}]: content is not a text")
        result.append(Message(role, content))
    if not result:
        raise UsageError("a chat needs at least one message")
    return result
