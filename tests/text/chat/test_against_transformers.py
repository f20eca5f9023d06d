"""Renderings and ids beside Hugging Face's `apply_chat_template`: own templates of every kind; and a folder of published ones, where
BITNET_TEMPLATES names one (llama.cpp's models/templates, which its Python package's source carries, has some 70)."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.byte_bpe import BYTE_OF
from bitnet_cli.text.chat.arguments import checked_args
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Said, checked_messages, encode_chat
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

from .conversations import CHATS
from .own_templates import OWN_TEMPLATES

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.live, pytest.mark.slow]

BOS, EOS = "<|begin|>", "<|end_of_all|>"
SPECIAL = re.compile(r"<\|?[^<>\s'\"{}()+~]{1,40}>|\[/?[A-Z_]{3,20}\]")


def both_tokenizers(source: str) -> tuple[Any, Tokenizer]:
    """The same vocabulary, bytes and control tokens for all that looks like one in a template, as Hugging Face reads it and as we do."""
    import tokenizers

    names = sorted({BOS, EOS, *SPECIAL.findall(source)})
    alphabet = list(BYTE_OF)
    library = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in names])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token=BOS, eos_token=EOS)
    theirs.chat_template = source
    k = "tokenizer.ggml."
    metadata: dict[str, Any] = {k + "model": "gpt2", k + "pre": "gpt-2", k + "tokens": alphabet + names, k + "merges": []}
    metadata |= {k + "token_type": [1] * 256 + [3] * len(names), k + "add_bos_token": False}
    metadata |= {k + "bos_token_id": 256 + names.index(BOS), k + "eos_token_id": 256 + names.index(EOS)}
    return theirs, tokenizer_from_metadata(metadata, "both.gguf")


def compare(source: str, chat: str, theirs: Any, tokenizer: Tokenizer, *, ask: bool = True) -> str:
    """`same`, or `refused` by both; anything else fails. `ids`: those too, where no message spells what would be a token there."""
    messages, args = CHATS[chat]
    template = JinjaTemplate("t", source, "t.jinja", BOS, EOS, args=checked_args(args))
    checked = checked_messages(messages)
    try:
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **args)
    except Exception as error:
        with pytest.raises(BadFileError) as refusal:
            template.pieces(checked, ask=ask)
        if type(error).__name__ == "TemplateError":  # raise_exception
            assert str(error)[:200] in str(refusal.value)
        return "refused"
    pieces = template.pieces(checked, ask=ask)
    assert "".join(piece[0] for piece in pieces if isinstance(piece, tuple)) == text
    assert not any(isinstance(piece, (list, Said)) for piece in pieces)
    if any(name in str([messages, args]) for name in SPECIAL.findall(source)):
        return "same"
    expected = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=ask, return_dict=False, **args)
    assert encode_chat(tokenizer, template, checked, ask=ask) == expected
    return "ids"


def strange(value: Any, name: str = "") -> Any:
    """A message with other letters wherever a client says what it likes: private-use characters, which no template has."""
    if isinstance(value, str):
        return value if name in ("role", "type") else "".join(chr(0xE000 + ord(c) % 0x1000) if not c.isspace() else c for c in value)
    if isinstance(value, list):
        return [strange(item) for item in value]
    return {key: strange(item, key) for key, item in value.items()} if isinstance(value, dict) else value


def no_strange_letter_is_special(source: str, chat: str) -> None:
    messages, args = CHATS[chat]
    template = JinjaTemplate("t", source, "t.jinja", BOS, EOS, args=checked_args(strange(args)))
    try:
        pieces = template.pieces(checked_messages(strange(messages)))
    except BadFileError:
        return
    letters = {c for piece in pieces if isinstance(piece, tuple) and piece[1] for c in piece[0]}
    assert not {c for c in letters if 0xE000 <= ord(c) < 0xF000}


def results(source: str) -> Counter[str]:
    """How many chats are the same, with ids or without, and how many refused by both."""
    theirs, tokenizer = both_tokenizers(source)
    found = Counter(compare(source, chat, theirs, tokenizer) for chat in CHATS)
    found[compare(source, "several turns", theirs, tokenizer, ask=False)] += 1
    for chat in ("thoughts", "calls and thoughts"):
        no_strange_letter_is_special(source, chat)
    return found


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_own_templates(name: str) -> None:
    found = results(OWN_TEMPLATES[name])
    assert found["same"] + found["ids"] >= 5 and found["ids"] >= 3


FOLDER = os.environ.get("BITNET_TEMPLATES", "")
PUBLISHED = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []


@pytest.mark.skipif(not FOLDER, reason="BITNET_TEMPLATES names no folder of templates")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates(path: Path) -> None:
    found = results(path.read_text(encoding="utf-8"))
    print(f"{path.stem}: {dict(found)}")
