"""Chat messages -> token ids, in the format that a model was trained on.

In: messages (role and text) and a tokenizer. Out: ids that end where the answer begins. A template gives *pieces*: its own text, in which
the names of control tokens are those tokens; text of messages, in which they are letters; and ids of earlier answers as the model gave
them, so that a KV cache that holds them stays valid. Nothing that a user writes can therefore become a control token, also not together
with what stands beside it.

The formats are data. Which one a file gets is decided in choice.py; a template in Jinja is rendered by jinja.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from bitnet_cli.errors import UsageError, option
from bitnet_cli.text.added import any_of
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import replace_surrogates

ROLES = ("system", "user", "assistant", "tool")
MARK = re.compile(r"<[^<>\s]{1,40}>")  # what a role or an end is marked with: <|user|>, </s>


class Said(NamedTuple):
    """A part of what the model itself said: text in which user-defined tokens are those tokens."""

    text: str
    special: bool = False


# (text, special) as in Tokenizer.encode_parts, or ids as they are
Piece = tuple[str, bool] | list[int]


@dataclass(frozen=True)
class Message:
    """One turn.

    ids    what the model wrote, token by token, where it is known; they decode to `content`
    given  the whole message where it is more than role and text: calls of tools, parts of the content, ...; JSON's values
    """

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    given: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as it was given, or role and content."""
        return dict(self.given) if self.given is not None else {"role": self.role, "content": self.content}


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
    def spelled(self) -> str:
        """The format's own text: what of it is a user-defined token is a mark as well."""

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
        return frozenset(MARK.findall(self.spelled))

    @property
    def spelled(self) -> str:
        return "\n".join([self.ask, *(text for turn in self.turns.values() for text in turn)])

    def pieces(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """As in `Template`. UsageError: a message that the format cannot express."""
        pieces: list[Piece] = [(self.begin, True)]
        if self.default_system and not (messages and messages[0].role == "system"):
            messages = [Message("system", self.default_system), *messages]
        for message in messages:
            if message.role not in self.turns or (message.given or {}).get("tool_calls"):
                raise UsageError(f"the chat format {self.name} knows no tools; {option('template')} model renders the file's own")
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


_SPEAKERS = ("system", "user", "assistant")


def _same(before: str, after: str) -> dict[str, tuple[str, str]]:
    return {role: (before.format(role=role), after) for role in _SPEAKERS}


# As trained: tokenizer_config.json of microsoft/bitnet-b1.58-2B-4T and gpu/tokenizer.py of microsoft/BitNet. The GGUF file that Microsoft
# published has another one inside (`Human:`, `BITNETAssistant:`), with which the model does not stop (ikawrakow/ik_llama.cpp issue 339).
BITNET_2B_4T = BuiltIn(
    "bitnet-2b-4t",
    {role: (f"{role.capitalize()}: ", "<|eot_id|>") for role in _SPEAKERS},
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
    marks = _marks(tokenizer, template)
    ids: list[int] = []
    run: list[tuple[str, bool]] = []
    bos = template.bos
    for piece in [*template.pieces(messages, ask=ask), []]:
        if isinstance(piece, tuple):
            run.append(piece)
            continue
        for parts in _apart(run, marks):
            ids += tokenizer.encode_parts(parts, bos=bos)
            bos = False
        run = []
        ids += piece
    return ids


def _marks(tokenizer: Tokenizer, template: Template) -> re.Pattern[str] | None:
    """What the template marks turns with and any text gives as one token, although it is no control token (`<|user|>` in some files)."""
    spelled = template.spelled
    names = {name for name in tokenizer.user_defined if len(name) > 1 and name.strip(" \u2581\n\t\r") and name in spelled}
    names |= {mark for mark in template.marks if mark not in names and len(tokenizer.encode(mark, bos=False)) == 1}
    return any_of(names) if names else None


def _apart(run: list[tuple[str, bool]], marks: re.Pattern[str] | None) -> list[list[tuple[str, bool]]]:
    """Parts of (text, special) pieces, cut inside each mark that has a character of a message; none where there is no piece."""
    text = "".join(piece[0] for piece in run)
    foreign = "".join(("\0" if piece[1] or isinstance(piece, Said) else "\1") * len(piece[0]) for piece in run)
    cuts, at = [], 0
    while marks is not None and (match := marks.search(text, at)):
        at = match.end()
        if "\1" in foreign[match.start() : match.end()]:
            at = match.start() + 1  # what is left of it may begin another one
            cuts.append(at)
    parts: list[list[tuple[str, bool]]] = [[]] if run else []
    at = 0
    for piece in run:
        start, end = 0, at + len(piece[0])
        while cuts and cuts[0] <= end:
            cut = cuts.pop(0) - at
            parts[-1].append((piece[0][start:cut], piece[1]))
            parts.append([])
            start = cut
        parts[-1].append((piece[0][start:], piece[1]))
        at = end
    return parts


def control_tokens_in(tokenizer: Tokenizer, template: Template, text: str) -> list[str]:
    """Control tokens that the template marks turns with, in a text, in its order: a text with any has the format already."""
    names = {tokenizer.token_text(token) for token in tokenizer.control_ids}
    names = {name for name in names if name in template.spelled} | {mark for mark in template.marks if mark.startswith("<|")}
    return [match[0] for match in any_of(names).finditer(text)] if names else []


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """What ends an answer: every end token, and any other control token, which has no place inside one (`<|im_start|>`)."""
    return tokenizer.eos_ids | tokenizer.control_ids


def checked_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages from dictionaries: `role`, `content` (a text, or a list of parts that are texts), and what else a template may know
    (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`, ...).

    UsageError: none, an unknown role, content that is no text, none where there are no `tool_calls`, a field that is not JSON.
    """
    result = []
    if not isinstance(messages, Iterable):
        raise UsageError(f"messages is {messages!r:.60}, expected a list of dictionaries")
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise UsageError(f"{field}: is no dictionary with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError(f"{field}: role is {role!r:.40}, expected {', '.join(ROLES)}")
        if isinstance(content, str) and message.keys() <= {"role", "content"}:
            result.append(Message(role, content))
            continue
        text = _text_of(content, f"{field}: content", optional=role == "assistant" and bool(message.get("tool_calls")))
        if not all(isinstance(name, str) for name in message):
            raise UsageError(f"{field}: a name of a field is not a text")
        result.append(Message(role, text, given=json_value(dict(message), field)))
    if not result:
        raise UsageError("a chat needs at least one message")
    return result


def _text_of(content: Any, field: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, (list, tuple)):
        raise UsageError(f"{field} is {'bytes, not' if isinstance(content, bytes) else 'not'} a text")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(f"{field}[{number}] is not a part of type text with a text")
    return "".join(part["text"] for part in content)


def json_value(value: Any, field: str) -> Any:
    """A copy of a value made of dictionaries, lists, texts, numbers. UsageError: it has something else in it, or is too deep."""
    try:
        return json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError):
        raise UsageError(f"{field}: is not JSON: dictionaries, lists, texts, numbers, true, false and null") from None
