"""Which tokens end a text of a checkpoint, and under which keys a GGUF file names them.

They come from config.json, generation_config.json, tokenizer_config.json (`eos_token`), the chat template, and names that are known to
end a turn: published configs list only some of the ids at which a model stops. GGUF has a key for each of three (`eos`, `eot`, `eom`;
llama.cpp stops at all of them); where there are more, all stand in the array `tokenizer.ggml.eos_token_ids`, which Ollama reads as well.

What the chat template says is found by rendering it: a token that follows the text of an assistant's message, with nothing but white
space between, ends that message.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.checkpoint.vocabulary import FolderVocabulary, TokenType
from bitnet_cli.errors import BitnetError
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Message

END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
END_OF_MESSAGE = "<|eom_id|>"  # Llama 3.1: of a call of a tool
LISTED = "eos_token_ids"
QUESTION, ANSWER = "question", "theanswer"
# The last message, and one in the middle: some templates end only one of them.
CHATS = (
    (Message("user", QUESTION), Message("assistant", ANSWER)),
    (Message("user", QUESTION), Message("assistant", ANSWER), Message("user", QUESTION)),
)


class Ends(NamedTuple):
    """keys: of `tokenizer.ggml.`; ids: all of them, the one that a text is given at its end first; notes: for the user."""

    keys: dict[str, Any]
    ids: list[int]
    notes: list[str]


class Template(NamedTuple):
    """A chat template and the texts of the tokens that it has variables for."""

    source: str | None
    bos_token: str
    eos_token: str
    path: Path


def find_ends(said: Sequence[Any], vocabulary: FolderVocabulary, template: Template) -> Ends:
    """said: ids from files other than the template, the most important first, as they stand there; None and -1 are none."""
    known = [i for i in said if type(i) is int and 0 <= i < len(vocabulary.tokens)]
    wrong = [i for i in said if i is not None and i != -1 and not (type(i) is int and i in known)]
    notes = [f"eos_token_id names tokens that do not exist: {str(wrong)[:60]}"] if wrong else []
    turn, note = _template_ends(template, vocabulary, set(known))
    ids = list(dict.fromkeys([*known, *turn]))
    eos = ids[0] if ids else None
    named = (i for i in map(vocabulary.find, END_OF_TURN) if i is not None)
    eot = next((i for i in [*turn, *named] if i != eos), None)
    message = vocabulary.find(END_OF_MESSAGE)
    # Keys that have no token of their own take one that has no key: readers stop at all three alike.
    without = [i for i in ids[1:] if i not in (eot, message)]
    if eot is None and without:
        eot = without.pop(0)
    if message is None and without:
        message = without.pop(0)
    keys = {f"{name}_token_id": i for name, i in (("eos", eos), ("eot", eot), ("eom", message)) if i is not None}
    ids = list(dict.fromkeys([*ids, *(i for i in (eot, message) if i is not None)]))
    if without:
        notes.append(f"the model stops at {len(ids)} tokens, of which llama.cpp reads three; all are in tokenizer.ggml.{LISTED}")
    return Ends(keys | ({LISTED: ids} if without else {}), ids, notes + note)


def _template_ends(template: Template, vocabulary: FolderVocabulary, known: set[int]) -> tuple[list[int], list[str]]:
    """Ids of the tokens that the template ends an assistant's message with, and a note where it cannot be rendered."""
    source = template.source
    if source is None:
        return [], []
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    marks = {text: i for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)) if kind in kinds and text}
    written = {text for text in marks if text in source}
    if written <= {vocabulary.tokens[i] for i in known} | {template.bos_token}:
        return [], []  # it can end with no token that is not known already
    found: list[int] = []
    reasons: list[str] = []
    for chat in CHATS:
        try:
            after = _after_answer(template, chat)
        except BitnetError as error:
            reasons.append(str(error))
            continue
        end = max((text for text in marks if after.startswith(text)), key=len, default=None)
        if end is not None:
            found.append(marks[end])
    if len(reasons) == len(CHATS):
        return [], [f"what ends a turn is not known from the chat template, which cannot be rendered ({reasons[0]})"]
    return list(dict.fromkeys(found)), []


def _after_answer(template: Template, chat: Sequence[Message]) -> str:
    """What follows the assistant's text in the rendered chat, without the white space before it; empty where the text is not there."""
    rendered = JinjaTemplate("model", template.source or "", str(template.path), template.bos_token, template.eos_token)
    text = "".join(piece[0] for piece in rendered.pieces(chat, ask=False) if isinstance(piece, tuple))
    return text.rpartition(ANSWER)[2].lstrip() if ANSWER in text else ""
